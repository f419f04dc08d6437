/* For any processor: four floats at once, which every compiler knows how to map (SSE2, NEON). */
#define TIER portable
#define LANES 4
#define WIDE 1
#define WIDE_INT4 1
#define NARROW 2
#define NARROW_INT4 2
#if defined(__x86_64__)
#define TARGET "sse2"
#elif defined(__aarch64__)
#define TARGET "+simd"
#endif
#include "tier.h"
