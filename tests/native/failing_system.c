// Preloaded into a process, makes calls of the system fail when it is told to.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

static atomic_int threads_left = -1; // that can be made; negative: any number
static atomic_int failing_reads = 0, failure = 0;
static atomic_long failing_offset = 0, short_count = 0;

void allow_threads(int count) { threads_left = count; }

// The next `count` reads at `offset` give an error, or, where that is 0, only so many bytes.
void fail_reads(int count, long offset, int error, long bytes) {
    failing_offset = offset;
    failure = error;
    short_count = bytes;
    failing_reads = count;
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) {
    static int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
    if (!real) real = dlsym(RTLD_NEXT, "pthread_create");
    if (threads_left == 0) return EAGAIN;
    if (threads_left > 0) --threads_left;
    return real(thread, attributes, run, argument);
}

ssize_t pread(int descriptor, void* target, size_t length, off_t offset) {
    static ssize_t (*real)(int, void*, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pread");
    if (failing_reads > 0 && offset == failing_offset) {
        --failing_reads;
        if (failure) {
            errno = failure;
            return -1;
        }
        const ssize_t count = real(descriptor, target, length, offset);
        return count < short_count ? count : short_count;
    }
    return real(descriptor, target, length, offset);
}

ssize_t pread64(int descriptor, void* target, size_t length, off_t offset) {
    return pread(descriptor, target, length, offset);
}
