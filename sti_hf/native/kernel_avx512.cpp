// Decompression with AVX-512 F and BW, 64 weights at a time: the bits of a plane are a mask register as they stand, and
// a table lookup uses only the low bits of its indices, so that the codes, a byte each, need no unpacking.
#include <immintrin.h>

#include "kernel_driver.h"

namespace sti {
namespace {

// The processor's own instruction would flush subnormals to zero.
inline __m256i to_bfloat16(__m512 values) {
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    const __m512i high = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0));
    return _mm512_cvtepi32_epi16(high);
}

inline __m512i join(__m256i first, __m256i second) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

// An order of 64 bytes, as one of the 16 dwords and then one of the bytes inside each 128 bits.
struct ByteOrder {
    alignas(64) uint32_t dwords[16];
    alignas(64) uint8_t bytes[64];

    __m512i apply(__m512i codes) const {
        return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(_mm512_load_si512(dwords), codes),
                                   _mm512_load_si512(bytes));
    }
};

// `weight_of(byte)`: the weight whose code is to stand at this byte.
template <class WeightOf>
constexpr ByteOrder make_order(WeightOf weight_of) {
    ByteOrder order{};
    for (int lane = 0; lane < 4; ++lane) {
        int found = 0;
        for (int byte = 0; byte < 16; ++byte) {
            const uint32_t dword = weight_of(16 * lane + byte) / 4;
            int place = 0;
            while (place < found && order.dwords[4 * lane + place] != dword) ++place;
            if (place == found) order.dwords[4 * lane + found++] = dword;
            order.bytes[16 * lane + byte] = 4 * place + weight_of(16 * lane + byte) % 4;
        }
    }
    return order;
}

// Byte k of the i-th index is the code of weight i of the k-th output vector.
constexpr ByteOrder INDICES_32 = make_order([](int byte) { return byte % 4 * 16 + byte / 4; });
constexpr ByteOrder INDICES_16 = make_order([](int byte) { return byte % 2 * 32 + byte / 2; });
// The same for values looked up in halves: interleaving them mixes only inside 128 bits.
constexpr ByteOrder SPLIT_INDICES = make_order(
    [](int byte) { return byte % 2 * 32 + byte / 2 % 8 / 4 * 16 + byte / 16 * 4 + byte / 2 % 4; });

template <int BITS>
inline __m512i load_codes(const uint8_t* const* planes, size_t byte, const ByteOrder& order) {
    __m512i codes = _mm512_setzero_si512();
    for (int p = 0; p < BITS; ++p)
        codes = _mm512_mask_add_epi8(codes, load<uint64_t>(planes[p] + byte), codes,
                                     _mm512_set1_epi8(1 << (BITS - 1 - p)));
    return order.apply(codes);
}

template <int BITS>
constexpr __mmask16 VALID = BITS < 4 ? (1 << (1 << BITS)) - 1 : 0xffff;

template <int BITS, DType OUT>
class Avx512Block;

template <int BITS>
class Avx512Block<BITS, DType::float32> {
public:
    static constexpr size_t WIDTH = 64;

    explicit Avx512Block(const float* values) {
        for (int t = 0; t < 2; ++t) tables_[t] = _mm512_maskz_loadu_ps(VALID<BITS>, values + (BITS == 5 ? 16 * t : 0));
    }

    void decode(const uint8_t* const* planes, size_t byte, uint8_t* out) const {
        const __m512i codes = load_codes<BITS>(planes, byte, INDICES_32);
        for (int k = 0; k < 4; ++k) {
            const __m512i index = _mm512_srli_epi32(codes, 8 * k);
            _mm512_storeu_ps(out + 64 * k, BITS == 5 ? _mm512_permutex2var_ps(tables_[0], index, tables_[1])
                                                     : _mm512_permutexvar_ps(index, tables_[0]));
        }
    }

private:
    __m512 tables_[2];
};

// 64 values of 32 bits are four registers, too many for one lookup: look up their halves.
template <>
class Avx512Block<6, DType::float32> {
public:
    static constexpr size_t WIDTH = 64;

    explicit Avx512Block(const float* values) {
        for (int t = 0; t < 2; ++t) {
            const __m512i first = _mm512_load_si512(values + 32 * t), second = _mm512_load_si512(values + 32 * t + 16);
            low_[t] = join(_mm512_cvtepi32_epi16(first), _mm512_cvtepi32_epi16(second));
            high_[t] = join(_mm512_cvtepi32_epi16(_mm512_srli_epi32(first, 16)),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(second, 16)));
        }
    }

    void decode(const uint8_t* const* planes, size_t byte, uint8_t* out) const {
        const __m512i codes = load_codes<6>(planes, byte, SPLIT_INDICES);
        for (int k = 0; k < 2; ++k) {
            const __m512i index = _mm512_srli_epi16(codes, 8 * k);
            const __m512i low = _mm512_permutex2var_epi16(low_[0], index, low_[1]);
            const __m512i high = _mm512_permutex2var_epi16(high_[0], index, high_[1]);
            _mm512_storeu_si512(out + 128 * k, _mm512_unpacklo_epi16(low, high));
            _mm512_storeu_si512(out + 128 * k + 64, _mm512_unpackhi_epi16(low, high));
        }
    }

private:
    __m512i low_[2], high_[2];
};

template <int BITS>
class Avx512Block<BITS, DType::bfloat16> {
public:
    static constexpr size_t WIDTH = 64;

    explicit Avx512Block(const float* values) {
        for (int t = 0; t < 2; ++t) {
            const float* half = values + (BITS == 6 ? 32 * t : 0);
            const __m256i first = to_bfloat16(_mm512_maskz_loadu_ps(VALID<BITS>, half));
            const __m256i second = BITS < 5 ? first : to_bfloat16(_mm512_loadu_ps(half + 16));
            tables_[t] = join(first, second);
        }
    }

    void decode(const uint8_t* const* planes, size_t byte, uint8_t* out) const {
        const __m512i codes = load_codes<BITS>(planes, byte, INDICES_16);
        for (int k = 0; k < 2; ++k) {
            const __m512i index = _mm512_srli_epi16(codes, 8 * k);
            _mm512_storeu_si512(out + 64 * k, BITS == 6 ? _mm512_permutex2var_epi16(tables_[0], index, tables_[1])
                                                        : _mm512_permutexvar_epi16(index, tables_[0]));
        }
    }

private:
    __m512i tables_[2];
};

inline __m512 load_floats(const uint8_t* source, DType type, size_t index) {
    if (type == DType::float32) return _mm512_loadu_ps(source + 4 * index);
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 2 * index));
    if (type == DType::float16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

void convert(const uint8_t* source, DType source_type, size_t count, void* out, DType out_type) {
    auto* target = static_cast<uint8_t*>(out);
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m512 values = load_floats(source, source_type, i);
        if (out_type == DType::float32)
            _mm512_storeu_ps(target + 4 * i, values);
        else
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + 2 * i), to_bfloat16(values));
    }
    convert_scalar(source, source_type, i, count, out, out_type);
}

}  // namespace

const Kernels avx512_kernels{"avx512", decode<Avx512Block>, convert, crc32c_x86};

}  // namespace sti
