// The loop over rows that all kernels share; an instruction set adds the decoding of one block of weights.
#pragma once

#include "float_formats.h"
#include "kernels.h"

namespace sti {
namespace {

// A `Block<BITS, OUT>` is made for every row from the row's 2^BITS values (codebook times scale). Its
// `decode(planes, byte, out)` writes the WIDTH weights whose bits start at `byte` of each plane.
template <template <int, DType> class Block, int BITS, DType OUT>
void decode_rows(const PlaneRows& rows, size_t first, size_t count, uint8_t* out) {
    constexpr size_t WIDTH = Block<BITS, OUT>::WIDTH;
    constexpr size_t ITEM = itemsize(OUT);
    const size_t row_bytes = rows.row_length / 8;
    const size_t whole = rows.row_length / WIDTH * WIDTH;
    alignas(64) float values[1 << BITS];
    alignas(64) uint8_t last_block[WIDTH * ITEM];

    for (size_t row = first; row < first + count; ++row, out += rows.row_length * ITEM) {
        const float scale = rows.scales ? half_to_float(load<uint16_t>(rows.scales + 2 * row)) : 1.0f;
        for (int code = 0; code < 1 << BITS; ++code) values[code] = rows.codebook[code] * scale;
        const Block<BITS, OUT> block(values);

        const uint8_t* planes[BITS];
        for (int p = 0; p < BITS; ++p) planes[p] = rows.planes[p] + row * row_bytes;
        for (size_t column = 0; column < whole; column += WIDTH) block.decode(planes, column / 8, out + column * ITEM);

        if (whole < rows.row_length) {  // the last weights of the row do not fill a block: decode a padded copy
            uint8_t padded[BITS][WIDTH / 8] = {};
            for (int p = 0; p < BITS; ++p) {
                std::memcpy(padded[p], planes[p] + whole / 8, row_bytes - whole / 8);
                planes[p] = padded[p];
            }
            block.decode(planes, 0, last_block);
            std::memcpy(out + whole * ITEM, last_block, (rows.row_length - whole) * ITEM);
        }
    }
}

template <template <int, DType> class Block, DType OUT>
void decode_bits(const PlaneRows& rows, size_t first, size_t count, uint8_t* out) {
    switch (rows.bits) {
        case 2: return decode_rows<Block, 2, OUT>(rows, first, count, out);
        case 3: return decode_rows<Block, 3, OUT>(rows, first, count, out);
        case 4: return decode_rows<Block, 4, OUT>(rows, first, count, out);
        case 5: return decode_rows<Block, 5, OUT>(rows, first, count, out);
        case 6: return decode_rows<Block, 6, OUT>(rows, first, count, out);
    }
}

template <template <int, DType> class Block>
void decode(const PlaneRows& rows, size_t first, size_t count, void* out, DType out_type) {
    if (out_type == DType::float32)
        decode_bits<Block, DType::float32>(rows, first, count, static_cast<uint8_t*>(out));
    else
        decode_bits<Block, DType::bfloat16>(rows, first, count, static_cast<uint8_t*>(out));
}

inline float load_float(const uint8_t* source, DType type, size_t index) {
    if (type == DType::float32) return load<float>(source + 4 * index);
    const uint16_t bits = load<uint16_t>(source + 2 * index);
    return type == DType::bfloat16 ? bfloat16_to_float(bits) : half_to_float(bits);
}

inline void store_float(void* out, DType type, size_t index, float value) {
    if (type == DType::float32)
        store(static_cast<uint8_t*>(out) + 4 * index, value);
    else
        store(static_cast<uint8_t*>(out) + 2 * index, float_to_bfloat16(value));
}

// Scalar conversion: what a kernel without vectors does, and vector kernels with their last few values.
inline void convert_scalar(const uint8_t* source, DType source_type, size_t first, size_t count, void* out,
                           DType out_type) {
    for (size_t i = first; i < count; ++i) store_float(out, out_type, i, load_float(source, source_type, i));
}

}  // namespace
}  // namespace sti
