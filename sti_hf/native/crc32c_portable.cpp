// CRC-32C from tables, eight bytes at a time.
#include <array>

#include "float_formats.h"
#include "kernels.h"

namespace sti {
namespace {

// tables[k][b]: what byte b does to a checksum that ends k bytes later.
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables make_tables() {
    Tables tables{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t state = byte;
        for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ (state & 1 ? 0x82f63b78u : 0);
        tables[0][byte] = state;
    }
    for (uint32_t byte = 0; byte < 256; ++byte)
        for (int k = 1; k < 8; ++k)
            tables[k][byte] = (tables[k - 1][byte] >> 8) ^ tables[0][tables[k - 1][byte] & 0xff];
    return tables;
}

constexpr Tables TABLES = make_tables();

}  // namespace

uint32_t crc32c_portable(const uint8_t* data, size_t size, uint32_t state) {
    for (; size >= 8; data += 8, size -= 8) {
        const uint64_t word = load<uint64_t>(data) ^ state;
        state = 0;
        for (int k = 0; k < 8; ++k) state ^= TABLES[7 - k][word >> (8 * k) & 0xff];
    }
    for (; size; ++data, --size) state = (state >> 8) ^ TABLES[0][(state ^ *data) & 0xff];
    return state;
}

}  // namespace sti
