// CRC-32C with the ARMv8 CRC instructions.
#include <arm_acle.h>

#include "crc32c_interleaved.h"

namespace sti {
namespace {

struct Armv8 {
    static uint32_t step8(uint32_t state, uint64_t word) { return __crc32cd(state, word); }
    static uint32_t step1(uint32_t state, uint8_t byte) { return __crc32cb(state, byte); }
};

}  // namespace

uint32_t crc32c_arm(const uint8_t* data, size_t size, uint32_t state) {
    return crc32c_interleaved<Armv8>(data, size, state);
}

}  // namespace sti
