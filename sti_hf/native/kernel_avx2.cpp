// Decompression with AVX2, 32 weights at a time: codes of a byte each, values looked up byte by byte.
#include <immintrin.h>

#include "byte_tables.h"

namespace sti {
namespace {

// Which bit of a plane's four bytes goes to which lane. Interleaving the bytes of the values mixes only inside 128
// bits; with this order of codes the values come out in order.
struct alignas(32) BitOrder {
    uint8_t byte[32], bit[32];
};

constexpr BitOrder make_bit_order(int value_bytes) {
    BitOrder order{};
    const int run = 16 / value_bytes;  // consecutive weights in 128 bits of output
    for (int lane = 0; lane < 32; ++lane) {
        const int weight = lane % 16 / run * 2 * run + lane / 16 * run + lane % run;
        order.byte[lane] = weight / 8;
        order.bit[lane] = 1 << weight % 8;
    }
    return order;
}

template <DType OUT>
constexpr BitOrder BIT_ORDER = make_bit_order(itemsize(OUT));

inline __m256i load_bytes(const uint8_t* source) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(source)); }

inline void store_bytes(uint8_t* target, __m256i bytes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), bytes);
}

template <int BITS, DType OUT>
class Avx2Block {
public:
    static constexpr size_t WIDTH = 32;

    explicit Avx2Block(const float* values) {
        const ByteTables<BITS, OUT> tables(values);
        for (int b = 0; b < BYTES; ++b)
            for (int t = 0; t < TABLES; ++t)
                tables_[b][t] = _mm256_broadcastsi128_si256(
                    _mm_load_si128(reinterpret_cast<const __m128i*>(tables.bytes[b] + 16 * t)));
    }

    void decode(const uint8_t* const* planes, size_t byte, uint8_t* out) const {
        const __m256i codes = load_codes(planes, byte);
        __m256i bytes[BYTES];
        for (int b = 0; b < BYTES; ++b) bytes[b] = look_up(tables_[b], codes);
        const __m256i low = _mm256_unpacklo_epi8(bytes[0], bytes[1]), high = _mm256_unpackhi_epi8(bytes[0], bytes[1]);
        if constexpr (OUT == DType::bfloat16) {
            store_bytes(out, low);
            store_bytes(out + 32, high);
        } else {
            const __m256i low_2 = _mm256_unpacklo_epi8(bytes[2], bytes[3]);
            const __m256i high_2 = _mm256_unpackhi_epi8(bytes[2], bytes[3]);
            store_bytes(out, _mm256_unpacklo_epi16(low, low_2));
            store_bytes(out + 32, _mm256_unpackhi_epi16(low, low_2));
            store_bytes(out + 64, _mm256_unpacklo_epi16(high, high_2));
            store_bytes(out + 96, _mm256_unpackhi_epi16(high, high_2));
        }
    }

private:
    static constexpr int BYTES = itemsize(OUT);
    static constexpr int TABLES = BITS <= 4 ? 1 : 1 << (BITS - 4);

    static __m256i load_codes(const uint8_t* const* planes, size_t byte) {
        const __m256i source = load_bytes(BIT_ORDER<OUT>.byte), bit = load_bytes(BIT_ORDER<OUT>.bit);
        __m256i codes = _mm256_setzero_si256();
        for (int p = 0; p < BITS; ++p) {
            const __m256i plane = _mm256_shuffle_epi8(_mm256_set1_epi32(load<int32_t>(planes[p] + byte)), source);
            const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(plane, bit), bit);  // -1 where it is
            codes = _mm256_sub_epi8(_mm256_add_epi8(codes, codes), is_set);
        }
        return codes;
    }

    // A lookup takes the low 4 bits of a code; the next bits, moved up to the sign, choose among the tables.
    static __m256i look_up(const __m256i* tables, __m256i codes) {
        if constexpr (TABLES == 1) return _mm256_shuffle_epi8(tables[0], codes);
        const __m256i odd = _mm256_slli_epi16(codes, 3);
        const __m256i lower = _mm256_blendv_epi8(_mm256_shuffle_epi8(tables[0], codes),
                                                 _mm256_shuffle_epi8(tables[1 % TABLES], codes), odd);
        if constexpr (TABLES == 2) return lower;
        const __m256i upper = _mm256_blendv_epi8(_mm256_shuffle_epi8(tables[2 % TABLES], codes),
                                                 _mm256_shuffle_epi8(tables[3 % TABLES], codes), odd);
        return _mm256_blendv_epi8(lower, upper, _mm256_slli_epi16(codes, 2));
    }

    __m256i tables_[BYTES][TABLES];
};

inline __m256 load_floats(const uint8_t* source, DType type, size_t index) {
    if (type == DType::float32) return _mm256_loadu_ps(reinterpret_cast<const float*>(source + 4 * index));
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + 2 * index));
    if (type == DType::float16) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline __m128i to_bfloat16(__m256 values) {
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    const __m256i high = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

void convert(const uint8_t* source, DType source_type, size_t count, void* out, DType out_type) {
    auto* target = static_cast<uint8_t*>(out);
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256 values = load_floats(source, source_type, i);
        if (out_type == DType::float32)
            _mm256_storeu_ps(reinterpret_cast<float*>(target + 4 * i), values);
        else
            _mm_storeu_si128(reinterpret_cast<__m128i*>(target + 2 * i), to_bfloat16(values));
    }
    convert_scalar(source, source_type, i, count, out, out_type);
}

}  // namespace

const Kernels avx2_kernels{"avx2", decode<Avx2Block>, convert, crc32c_x86};

}  // namespace sti
