// The threads that PyTorch multiplies with: they are still awake when a matrix has to be decompressed between two
// products, where threads of ours would first have to be woken, and would then compete with them.
#pragma once

#include <cstddef>
#include <functional>

namespace sti {

// Calls task(0) .. task(count - 1), each once, on at most `threads` threads, the caller's among them. Each takes its
// share in a row, the same one every time: a core multiplies by what it has just written into its own cache. Rethrows
// an exception. False, and nothing is called, where the process has loaded no OpenMP runtime, or is a child whose
// parent has the runtime's threads.
bool run_on_openmp(size_t count, int threads, const std::function<void(size_t)>& task);

}  // namespace sti
