#if defined(__x86_64__)
#include <immintrin.h>
#define TIER avx512
#define LANES 16
#define WIDE 6
#define WIDE_INT4 2
#define NARROW 6
#define NARROW_INT4 8
#define HAS_VNNI
#define TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma"
#include "tier.h"
#else
#include "step.h"
const Tier tier_avx512 = {.name = "avx512"};
#endif
