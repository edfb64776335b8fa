// Reading a file past the page cache.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace sti {

constexpr size_t BLOCK = 4096;  // what direct reads are aligned to, in the file and in memory

// A read failed, or what it gave is not what the store says.
struct StreamError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Direct IO where the file system does it; otherwise buffered, and the pages are given back after each read. Any number
// of threads may read at once.
class File {
public:
    // Throws std::system_error where the file cannot be opened.
    File(std::string path, bool direct);
    ~File();
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    const std::string& path() const { return path_; }
    bool direct() const { return direct_; }

    // Reads `length` bytes at `offset`, fewer only at the end of the file; returns how many. Where `direct()`, all of
    // the three must be multiples of BLOCK. Throws StreamError.
    size_t read(uint8_t* target, size_t length, uint64_t offset);

private:
    void stop_direct();

    const std::string path_;
    int descriptor_ = -1;
    std::atomic<bool> direct_{false};
};

// Drops the file's clean pages from the page cache. Throws std::system_error.
void evict(const std::string& path);

}  // namespace sti
