// Makes the disk look slower than it is: for benchmarks on machines where the kernel cannot be told to do so.
#pragma once

#include <chrono>
#include <cstddef>
#include <mutex>
#include <stdexcept>

namespace sti {

class RateLimit {
public:
    using Clock = std::chrono::steady_clock;

    // `bytes_per_second` 0: no limit. Throws std::invalid_argument where it is negative or no number.
    explicit RateLimit(double bytes_per_second) : bytes_per_second_(bytes_per_second) {
        if (!(bytes_per_second >= 0)) throw std::invalid_argument("rate_limit must be 0 (none) or bytes per second");
    }

    // The moment at which a read of `bytes` that begins now may end. Time without reads is not saved up.
    Clock::time_point reserve(size_t bytes) {
        const auto now = Clock::now();
        if (bytes_per_second_ <= 0) return now;
        std::lock_guard<std::mutex> lock(mutex_);
        const std::chrono::duration<double> takes(static_cast<double>(bytes) / bytes_per_second_);
        // Who wakes a little late goes on from when he should have; otherwise every wake-up would lower the rate.
        if (now - free_ > LATE) free_ = now;
        free_ += std::chrono::duration_cast<Clock::duration>(takes);
        return free_;
    }

private:
    static constexpr std::chrono::milliseconds LATE{5};
    const double bytes_per_second_;
    std::mutex mutex_;
    Clock::time_point free_{};
};

}  // namespace sti
