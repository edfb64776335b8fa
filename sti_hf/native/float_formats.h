// Scalar conversions between float32, float16 and bfloat16, and loads that need no alignment.
#pragma once

#include <cstdint>
#include <cstring>

namespace sti {
// Unnamed, so that each kernel file keeps its own copy: a copy compiled for one instruction set must never be linked
// into the code of another.
namespace {

template <class T>
inline T load(const void* source) {
    T value;
    std::memcpy(&value, source, sizeof value);
    return value;
}

template <class T>
inline void store(void* target, T value) {
    std::memcpy(target, &value, sizeof value);
}

inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t magnitude = half & 0x7fff;
    if (magnitude < 0x0400) {  // zero or subnormal: a count of 2^-24
        return static_cast<float>(magnitude) * (sign ? -0x1p-24f : 0x1p-24f);
    }
    uint32_t bits = sign | ((magnitude << 13) + 0x38000000);
    if (magnitude >= 0x7c00) bits += 0x38000000;  // infinity, or not a number,
    if (magnitude > 0x7c00) bits |= 0x00400000;   // which processors make a quiet one
    return load<float>(&bits);
}

// Rounds to nearest, ties to even.
inline uint16_t float_to_bfloat16(float value) {
    const uint32_t bits = load<uint32_t>(&value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float bfloat16_to_float(uint16_t value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    return load<float>(&bits);
}

}  // namespace
}  // namespace sti
