// Marks what libmahal offers to its users; everything else is hidden.
#pragma once

#if defined(__GNUC__) || defined(__clang__)
#define MAHAL_API __attribute__((visibility("default")))
#else
#define MAHAL_API
#endif
