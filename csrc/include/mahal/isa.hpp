// Instruction sets that the CPU kernels are compiled for.
#pragma once

#include <cstdint>

namespace mahal {

// On x86-64: base is x86-64-v2, avx2 is x86-64-v3, avx512 is x86-64-v4. Elsewhere there is base.
enum class Isa : std::uint8_t { base, avx2, avx512 };

}  // namespace mahal
