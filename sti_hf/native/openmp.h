// The threads that PyTorch multiplies with: they are still awake when a matrix has to be decompressed between two
// products, where threads of ours would first have to be woken, and would then compete with them.
#pragma once

namespace sti {

// Calls work(data) on up to `threads` threads at once, the caller's among them, and returns when all have ended.
// False, and nothing is called, where the process has loaded no OpenMP runtime, or is a child whose parent has the
// runtime's threads. `work` must not throw.
bool run_on_openmp(void (*work)(void*), void* data, int threads);

}  // namespace sti
