// Reading a file past the page cache.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

namespace sti {

constexpr size_t BLOCK = 4096;  // what direct reads are aligned to, in the file and in memory

// A read failed, or what it gave is not what the store says.
struct StreamError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A file that cannot be opened.
struct FileError : std::system_error {
    FileError(int error, const std::string& path)
        : std::system_error(error, std::generic_category(), path), path(path) {}
    const std::string path;
};

// Direct IO where the file system does it; otherwise buffered, and the pages are given back after each read. Any number
// of threads may read at once.
class File {
public:
    // Throws FileError.
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
    uint64_t size() const;

    const std::string path_;
    int descriptor_ = -1;
    std::atomic<bool> direct_{false};
};

using Files = std::vector<std::unique_ptr<File>>;

// Throws FileError.
Files open_files(const std::vector<std::string>& paths, bool direct);

// Drops the file's clean pages from the page cache. Throws FileError.
void evict(const std::string& path);

}  // namespace sti
