#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace sti {
namespace {

#if defined(O_DIRECT)
constexpr int DIRECT = O_DIRECT;
#else
constexpr int DIRECT = 0;  // macOS: fcntl(F_NOCACHE) after opening
#endif

void drop_pages([[maybe_unused]] int descriptor, [[maybe_unused]] uint64_t offset, [[maybe_unused]] size_t length) {
#if defined(POSIX_FADV_DONTNEED)
    posix_fadvise(descriptor, static_cast<off_t>(offset), static_cast<off_t>(length), POSIX_FADV_DONTNEED);
#endif
}

}  // namespace

File::File(std::string path, bool direct) : path_(std::move(path)) {
    constexpr int flags = O_RDONLY | O_CLOEXEC;
    if (direct && DIRECT) {
        descriptor_ = open(path_.c_str(), flags | DIRECT);
        direct_ = descriptor_ >= 0;
    }
    if (descriptor_ < 0) descriptor_ = open(path_.c_str(), flags);
    if (descriptor_ < 0) throw FileError(errno, path_);
#if defined(F_NOCACHE)
    if (direct) fcntl(descriptor_, F_NOCACHE, 1);
#endif
}

File::~File() { close(descriptor_); }

void File::stop_direct() {
    const int flags = fcntl(descriptor_, F_GETFL);
    fcntl(descriptor_, F_SETFL, flags & ~DIRECT);
    direct_ = false;
}

uint64_t File::size() const {
    struct stat status;
    return fstat(descriptor_, &status) == 0 ? static_cast<uint64_t>(status.st_size) : 0;
}

size_t File::read(uint8_t* target, size_t length, uint64_t offset) {
    size_t done = 0;
    while (done < length) {
        const bool direct = direct_;
        const ssize_t count = pread(descriptor_, target + done, length - done, static_cast<off_t>(offset + done));
        if (count < 0) {
            if (errno == EINTR) continue;
            if (errno == EINVAL && direct) {  // some file systems refuse direct IO only here
                stop_direct();
                continue;
            }
            throw StreamError(path_ + ": cannot read " + std::to_string(length) + " bytes at offset " +
                              std::to_string(offset) + ": " + std::strerror(errno));
        }
        done += static_cast<size_t>(count);
        // A direct read ends inside a block only where the file does, and cannot go on from there.
        if (count == 0 || (direct && count % BLOCK != 0)) break;
    }
    if (done < length && offset + done < size())
        throw StreamError(path_ + ": of " + std::to_string(length) + " bytes at offset " + std::to_string(offset) +
                          " the system gave only " + std::to_string(done));
    if (!direct_) drop_pages(descriptor_, offset, length);
    return done;
}

Files open_files(const std::vector<std::string>& paths, bool direct) {
    Files files;
    for (const std::string& path : paths) files.push_back(std::make_unique<File>(path, direct));
    return files;
}

void evict(const std::string& path) {
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) throw FileError(errno, path);
    drop_pages(descriptor, 0, 0);
    close(descriptor);
}

}  // namespace sti
