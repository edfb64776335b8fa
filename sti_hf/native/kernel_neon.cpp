// Decompression with NEON, 16 weights at a time: codes of a byte each, values looked up byte by byte in tables of up to
// 64 bytes, and interleaved by the store.
#include <arm_neon.h>

#include "byte_tables.h"

namespace sti {
namespace {

template <int BITS, DType OUT>
class NeonBlock {
public:
    static constexpr size_t WIDTH = 16;

    explicit NeonBlock(const float* values) {
        const ByteTables<BITS, OUT> tables(values);
        for (int b = 0; b < BYTES; ++b)
            for (int t = 0; t < TABLES; ++t) tables_[b].val[t] = vld1q_u8(tables.bytes[b] + 16 * t);
    }

    void decode(const uint8_t* const* planes, size_t byte, uint8_t* out) const {
        const uint8x16_t codes = load_codes(planes, byte);
        if constexpr (OUT == DType::bfloat16) {
            vst2q_u8(out, {look_up(tables_[0], codes), look_up(tables_[1], codes)});
        } else {
            vst4q_u8(out, {look_up(tables_[0], codes), look_up(tables_[1], codes), look_up(tables_[2], codes),
                           look_up(tables_[3], codes)});
        }
    }

private:
    static constexpr int BYTES = itemsize(OUT);
    static constexpr int TABLES = BITS <= 4 ? 1 : 1 << (BITS - 4);

    struct Table {
        uint8x16_t val[TABLES];
    };

    static uint8x16_t load_codes(const uint8_t* const* planes, size_t byte) {
        const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
        uint8x16_t codes = vdupq_n_u8(0);
        for (int p = 0; p < BITS; ++p) {
            const uint8x16_t plane = vcombine_u8(vld1_dup_u8(planes[p] + byte), vld1_dup_u8(planes[p] + byte + 1));
            codes = vsubq_u8(vaddq_u8(codes, codes), vtstq_u8(plane, bit));  // the test gives -1 where the bit is set
        }
        return codes;
    }

    static uint8x16_t look_up(const Table& table, uint8x16_t codes) {
        if constexpr (TABLES == 1) return vqtbl1q_u8(table.val[0], codes);
        if constexpr (TABLES == 2) return vqtbl2q_u8({table.val[0], table.val[1 % TABLES]}, codes);
        if constexpr (TABLES == 4)
            return vqtbl4q_u8({table.val[0], table.val[1 % TABLES], table.val[2 % TABLES], table.val[3 % TABLES]},
                              codes);
    }

    Table tables_[BYTES];
};

inline float32x4_t load_floats(const uint8_t* source, DType type, size_t index) {
    if (type == DType::float32) return vreinterpretq_f32_u8(vld1q_u8(source + 4 * index));
    const uint16x4_t bits = vreinterpret_u16_u8(vld1_u8(source + 2 * index));
    if (type == DType::float16) return vcvt_f32_f16(vreinterpret_f16_u16(bits));
    return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
}

inline uint16x4_t to_bfloat16(float32x4_t values) {
    const uint32x4_t bits = vreinterpretq_u32_f32(values);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t is_number = vceqq_f32(values, values);
    return vshrn_n_u32(vbslq_u32(is_number, rounded, vdupq_n_u32(0x7fc00000)), 16);
}

void convert(const uint8_t* source, DType source_type, size_t count, void* out, DType out_type) {
    auto* target = static_cast<uint8_t*>(out);
    size_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const float32x4_t values = load_floats(source, source_type, i);
        if (out_type == DType::float32)
            vst1q_u8(target + 4 * i, vreinterpretq_u8_f32(values));
        else
            vst1_u8(target + 2 * i, vreinterpret_u8_u16(to_bfloat16(values)));
    }
    convert_scalar(source, source_type, i, count, out, out_type);
}

}  // namespace

const Kernels neon_kernels{"neon", decode<NeonBlock>, convert, crc32c_arm};

}  // namespace sti
