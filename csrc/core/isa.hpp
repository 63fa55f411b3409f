// The instruction set of this translation unit. Included by the per-ISA sources, so no standard
// containers here.
#pragma once

#include "mahal/isa.hpp"

namespace mahal {

#if defined(MAHAL_ISA_LEVEL)
static constexpr Isa current_isa = static_cast<Isa>(MAHAL_ISA_LEVEL);
#endif

}  // namespace mahal
