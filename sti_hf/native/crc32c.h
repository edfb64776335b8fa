// CRC-32C (Castagnoli), the checksum of every piece of a store.
#pragma once

#include "kernels.h"

namespace sti {

// Checksum of `size` bytes; `value` is the checksum of the bytes before them, 0 at the start.
inline uint32_t crc32c(const uint8_t* data, size_t size, uint32_t value = 0) {
    return ~kernels().crc32c(data, size, ~value);
}

}  // namespace sti
