#if defined(__x86_64__)
#include <immintrin.h>
#define TIER avx2
#define LANES 8
#define WIDE 1
#define WIDE_INT4 1
#define NARROW 6
#define NARROW_INT4 6
#define TARGET "avx2,fma"
#include "tier.h"
#else
#include "step.h"
const Tier tier_avx2 = {.name = "avx2"};
#endif
