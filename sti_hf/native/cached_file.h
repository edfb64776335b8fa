// Reading small ranges of a file through the page cache: many at once, without threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sti {

// Any number of threads may read at once.
class CachedFile {
public:
    // Throws FileError.
    explicit CachedFile(std::string path);
    ~CachedFile();
    CachedFile(const CachedFile&) = delete;
    CachedFile& operator=(const CachedFile&) = delete;

    const std::string& path() const { return path_; }

    // Reads a range that is in the page cache; false, and the target undefined, where part of it is not.
    bool read_cached(uint8_t* target, size_t length, uint64_t offset) const;
    // Has the system begin to read a range, and does not wait for it.
    void prefetch(size_t length, uint64_t offset) const;
    // Reads `length` bytes at `offset`, fewer only at the end of the file; returns how many. Throws StreamError.
    size_t read(uint8_t* target, size_t length, uint64_t offset) const;

private:
    const std::string path_;
    int descriptor_ = -1;
};

}  // namespace sti
