// Gathers rows of a table from a file: many small reads at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "file.h"
#include "rate_limit.h"

namespace sti {

struct Rows {
    const int64_t* offsets;  // in the file, ascending, of any alignment
    size_t count;
    size_t row_bytes;
    const uint32_t* crcs;  // CRC-32C of each row, or null
};

// Reads the rows to `out`, one after the other; returns the bytes read from the disk. Throws StreamError where the file
// ends too early or a checksum does not match, std::invalid_argument for offsets that are negative or not ascending.
uint64_t read_rows(File& file, RateLimit& rate_limit, const Rows& rows, uint8_t* out, int threads);

}  // namespace sti
