#include "kernels.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace sti {
namespace {

std::vector<const Kernels*> find_available() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) found.push_back(&avx512_kernels);
    if (__builtin_cpu_supports("avx2")) found.push_back(&avx2_kernels);
#elif defined(__aarch64__) && defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_CRC32) found.push_back(&neon_kernels);
#elif defined(__aarch64__)
    found.push_back(&neon_kernels);
#endif
    found.push_back(&portable_kernels);
    return found;
}

const std::vector<const Kernels*>& available() {
    static const std::vector<const Kernels*> found = find_available();
    return found;
}

const Kernels* find(const std::string& isa) {
    std::string names;
    for (const Kernels* candidate : available()) {
        if (isa == candidate->isa) return candidate;
        names += (names.empty() ? "" : ", ") + std::string(candidate->isa);
    }
    throw std::invalid_argument("instruction set \"" + isa + "\" is not available; this processor runs: " + names);
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
    const Kernels* current = chosen.load(std::memory_order_acquire);
    if (!current) {
        const char* forced = std::getenv("STI_HF_ISA");
        current = forced && *forced ? find(forced) : available().front();
        chosen.store(current, std::memory_order_release);
    }
    return *current;
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Kernels* candidate : available()) names.emplace_back(candidate->isa);
    return names;
}

void set_isa(const std::string& isa) { chosen.store(find(isa), std::memory_order_release); }

}  // namespace sti
