// Gathers rows of a table from a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cached_file.h"
#include "file.h"
#include "rate_limit.h"

namespace sti {

struct Rows {
    const int64_t* offsets;  // in the file, ascending, of any alignment
    size_t count;
    size_t row_bytes;
    const uint32_t* crcs;  // CRC-32C of each row, or null
};

// Any number of threads may read at once, those of a forked child too.
class RowReader {
public:
    // Throws FileError. `rate_limit` is in bytes per second, 0 for none.
    RowReader(const std::string& path, double rate_limit);

    // Reads the rows to `out`, one after the other; returns the bytes read from the disk. They go through the page
    // cache: the system reads all of them at once, and those that are asked for often it may still have. `direct`
    // reads past it. Throws StreamError where the file ends too early or a checksum does not match,
    // std::invalid_argument for offsets that are negative or not ascending.
    uint64_t read(const Rows& rows, uint8_t* out, bool direct);

private:
    struct Gather;

    void read_direct(Gather& gather, size_t first, size_t end);
    void request(Gather& gather, size_t first, size_t end);
    void finish(Gather& gather);

    RateLimit rate_limit_;
    const CachedFile cached_;
    File direct_;
};

}  // namespace sti
