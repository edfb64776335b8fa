// The CRC instruction takes three cycles, but a new one may start in each: run three stretches of the data side by
// side, then move their checksums together.
#pragma once

#include "float_formats.h"
#include "kernels.h"

namespace sti {
namespace {

// Numbers here are polynomials over GF(2): bit i is the coefficient of x^(31 - i).
constexpr uint32_t CASTAGNOLI = 0x82f63b78, ONE = 0x80000000;

constexpr uint32_t times_x(uint32_t a) { return (a >> 1) ^ (CASTAGNOLI & (0 - (a & 1))); }

constexpr uint32_t multiply(uint32_t a, uint32_t b) {  // modulo CASTAGNOLI
    uint32_t product = 0;
    for (int power = 0; power < 32; ++power, a <<= 1, b = times_x(b)) product ^= b & (0 - (a >> 31));
    return product;
}

constexpr uint32_t power_of_x(uint64_t exponent) {
    uint32_t result = ONE, square = times_x(ONE);
    for (; exponent; exponent >>= 1, square = multiply(square, square))
        if (exponent & 1) result = multiply(result, square);
    return result;
}

// `Isa::step8(state, word)` and `Isa::step1(state, byte)` are the processor's instructions.
template <class Isa, size_t STRETCH>
uint32_t three_stretches(const uint8_t*& data, size_t& size, uint32_t state) {
    // Checksum of the data followed by n zero bytes: times x^(8 n).
    constexpr uint32_t over_one = power_of_x(8 * STRETCH), over_two = power_of_x(16 * STRETCH);
    for (; size >= 3 * STRETCH; data += 3 * STRETCH, size -= 3 * STRETCH) {
        uint32_t second = 0, third = 0;
        for (size_t i = 0; i < STRETCH; i += 8) {
            state = Isa::step8(state, load<uint64_t>(data + i));
            second = Isa::step8(second, load<uint64_t>(data + STRETCH + i));
            third = Isa::step8(third, load<uint64_t>(data + 2 * STRETCH + i));
        }
        state = multiply(over_two, state) ^ multiply(over_one, second) ^ third;
    }
    return state;
}

template <class Isa>
uint32_t crc32c_interleaved(const uint8_t* data, size_t size, uint32_t state) {
    state = three_stretches<Isa, 2048>(data, size, state);
    state = three_stretches<Isa, 512>(data, size, state);
    for (; size >= 8; data += 8, size -= 8) state = Isa::step8(state, load<uint64_t>(data));
    for (; size; ++data, --size) state = Isa::step1(state, *data);
    return state;
}

}  // namespace
}  // namespace sti
