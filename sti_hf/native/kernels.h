// What is written for one instruction set, and the choice of one at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sti {

constexpr int MAX_BITS = 6;

enum class DType { float32, bfloat16, float16 };

constexpr size_t itemsize(DType type) { return type == DType::float32 ? 4 : 2; }

// The rows of one matrix of one slice as bit-planes.
struct PlaneRows {
    int bits;                         // fidelity, 2 .. 6
    size_t row_length;                // weights in a row, a multiple of 8
    const uint8_t* planes[MAX_BITS];  // first byte of each plane; a plane's row has row_length / 8 bytes
    float codebook[1 << MAX_BITS];    // value of a code; plane 1 is the code's most significant bit
    const uint8_t* scales;            // float16 scale of each row, or null
};

struct Kernels {
    const char* isa;
    // Writes rows first .. first + count - 1 to `out` (float32 or bfloat16), which holds these rows alone.
    void (*decode)(const PlaneRows& rows, size_t first, size_t count, void* out, DType out_type);
    // Writes `count` values of a row-major source in another dtype.
    void (*convert)(const uint8_t* source, DType source_type, size_t count, void* out, DType out_type);
    // CRC-32C without the inversions at its start and end.
    uint32_t (*crc32c)(const uint8_t* data, size_t size, uint32_t state);
};

// Those in use: the fastest that this processor runs, unless STI_HF_ISA or `set_isa` names others.
const Kernels& kernels();
std::vector<std::string> available_isas();  // fastest first
void set_isa(const std::string& isa);       // throws std::invalid_argument

uint32_t crc32c_portable(const uint8_t* data, size_t size, uint32_t state);
extern const Kernels portable_kernels;
#if defined(__x86_64__)
uint32_t crc32c_x86(const uint8_t* data, size_t size, uint32_t state);
extern const Kernels avx2_kernels, avx512_kernels;
#elif defined(__aarch64__)
uint32_t crc32c_arm(const uint8_t* data, size_t size, uint32_t state);
extern const Kernels neon_kernels;
#endif

}  // namespace sti
