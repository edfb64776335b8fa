// Decompression in plain C++, for processors without a kernel of their own.
#include <array>
#include <type_traits>

#include "kernel_driver.h"

namespace sti {
namespace {

// A byte of a plane -> its bits, each in a byte of its own.
constexpr std::array<uint64_t, 256> make_spread() {
    std::array<uint64_t, 256> spread{};
    for (uint64_t byte = 0; byte < 256; ++byte)
        for (int bit = 0; bit < 8; ++bit) spread[byte] |= (byte >> bit & 1) << (8 * bit);
    return spread;
}
constexpr std::array<uint64_t, 256> SPREAD = make_spread();

template <int BITS, DType OUT>
class PortableBlock {
public:
    static constexpr size_t WIDTH = 8;

    explicit PortableBlock(const float* values) {
        for (int code = 0; code < 1 << BITS; ++code) store_float(values_, OUT, code, values[code]);
    }

    void decode(const uint8_t* const* planes, size_t byte, uint8_t* out) const {
        uint64_t codes = 0;  // a byte for each of 8 weights
        for (int p = 0; p < BITS; ++p) codes = codes << 1 | SPREAD[planes[p][byte]];
        Value decoded[8];
        for (int weight = 0; weight < 8; ++weight) decoded[weight] = values_[codes >> (8 * weight) & 0xff];
        std::memcpy(out, decoded, sizeof decoded);
    }

private:
    using Value = std::conditional_t<OUT == DType::float32, uint32_t, uint16_t>;
    Value values_[1 << BITS];
};

void convert(const uint8_t* source, DType source_type, size_t count, void* out, DType out_type) {
    convert_scalar(source, source_type, 0, count, out, out_type);
}

}  // namespace

const Kernels portable_kernels{"portable", decode<PortableBlock>, convert, crc32c_portable};

}  // namespace sti
