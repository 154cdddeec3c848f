// The kernels of deformable_attention.cu as functions for the CPU; configured by the same macros.

#include "cuda_emulator.h"
#include "deformable_attention.cu"

using Kernel = void(const Problem, const Levels);

// For tests that look at the last blocks of very many.
extern "C" {
unsigned first_block = 0;
}

static void emulate(Kernel kernel, const Problem& problem, const Levels& levels, unsigned num_blocks, bool backwards) {
  emulated::launch(num_blocks, THREADS, backwards, [&] { kernel(problem, levels); }, first_block);
}

extern "C" {

void emulate_forward(const Problem& problem, const Levels& levels, unsigned num_blocks, bool backwards) {
  emulate(forward, problem, levels, num_blocks, backwards);
}

void emulate_backward(const Problem& problem, const Levels& levels, unsigned num_blocks, bool backwards) {
  emulate(backward, problem, levels, num_blocks, backwards);
}

void emulate_backward_value_in_order(const Problem& problem, const Levels& levels, unsigned num_blocks,
                                     bool backwards) {
  emulate(backward_value_in_order, problem, levels, num_blocks, backwards);
}

}  // extern "C"
