#include "cached_file.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "file.h"

namespace sti {

CachedFile::CachedFile(std::string path) : path_(std::move(path)) {
    descriptor_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) throw FileError(errno, path_);
#if defined(POSIX_FADV_RANDOM)
    posix_fadvise(descriptor_, 0, 0, POSIX_FADV_RANDOM);  // what is not asked for shall not be read
#endif
}

CachedFile::~CachedFile() { close(descriptor_); }

bool CachedFile::read_cached([[maybe_unused]] uint8_t* target, [[maybe_unused]] size_t length,
                             [[maybe_unused]] uint64_t offset) const {
#if defined(RWF_NOWAIT)
    const iovec range{target, length};
    return preadv2(descriptor_, &range, 1, static_cast<off_t>(offset), RWF_NOWAIT) == static_cast<ssize_t>(length);
#else
    return false;
#endif
}

void CachedFile::prefetch(size_t length, uint64_t offset) const {
#if defined(POSIX_FADV_WILLNEED)
    posix_fadvise(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(length), POSIX_FADV_WILLNEED);
#elif defined(F_RDADVISE)
    radvisory range{static_cast<off_t>(offset), static_cast<int>(length)};
    fcntl(descriptor_, F_RDADVISE, &range);
#endif
}

size_t CachedFile::read(uint8_t* target, size_t length, uint64_t offset) const {
    size_t done = 0;
    while (done < length) {
        const ssize_t count = pread(descriptor_, target + done, length - done, static_cast<off_t>(offset + done));
        if (count == 0) break;
        if (count > 0) {
            done += static_cast<size_t>(count);
        } else if (errno != EINTR) {
            throw StreamError(path_ + ": cannot read " + std::to_string(length) + " bytes at offset " +
                              std::to_string(offset) + ": " + std::strerror(errno));
        }
    }
    return done;
}

}  // namespace sti
