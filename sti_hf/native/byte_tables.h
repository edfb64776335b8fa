// The values of a row, cut into their bytes, for processors that look up bytes.
#pragma once

#include "kernel_driver.h"

namespace sti {
namespace {

// bytes[b][code]: byte b of the value of a code.
template <int BITS, DType OUT>
struct ByteTables {
    static constexpr int SIZE = BITS < 4 ? 16 : 1 << BITS;
    alignas(64) uint8_t bytes[itemsize(OUT)][SIZE];

    explicit ByteTables(const float* values) {
        for (int code = 0; code < 1 << BITS; ++code) {
            const bool single = OUT == DType::float32;
            const uint32_t bits = single ? load<uint32_t>(values + code) : float_to_bfloat16(values[code]);
            for (size_t b = 0; b < itemsize(OUT); ++b) bytes[b][code] = static_cast<uint8_t>(bits >> (8 * b));
        }
    }
};

}  // namespace
}  // namespace sti
