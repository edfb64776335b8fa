// CRC-32C with SSE4.2.
#include <nmmintrin.h>

#include "crc32c_interleaved.h"

namespace sti {
namespace {

struct Sse42 {
    static uint32_t step8(uint32_t state, uint64_t word) { return static_cast<uint32_t>(_mm_crc32_u64(state, word)); }
    static uint32_t step1(uint32_t state, uint8_t byte) { return _mm_crc32_u8(state, byte); }
};

}  // namespace

uint32_t crc32c_x86(const uint8_t* data, size_t size, uint32_t state) {
    return crc32c_interleaved<Sse42>(data, size, state);
}

}  // namespace sti
