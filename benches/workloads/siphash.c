#include "bench.h"
/* SipHash-2-4 of 1 KiB: 64-bit additions and rotations, four values live */
#define ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define ROUND do { v0 += v1; v1 = ROTL(v1, 13); v1 ^= v0; v0 = ROTL(v0, 32); v2 += v3; v3 = ROTL(v3, 16); v3 ^= v2; \
  v0 += v3; v3 = ROTL(v3, 21); v3 ^= v0; v2 += v1; v1 = ROTL(v1, 17); v1 ^= v2; v2 = ROTL(v2, 32); } while (0)
INLINE u64 load(u8 *mem){
  u64 v0=0x736f6d6570736575ull, v1=0x646f72616e646f6dull, v2=0x6c7967656e657261ull, v3=0x7465646279746573ull;
  #pragma clang loop unroll(disable)
  for(u32 i=0;i<1024;i+=8){ u64 m=*(u64*)(mem+i); v3^=m; ROUND; ROUND; v0^=m; }
  v2^=0xff; ROUND; ROUND; ROUND; ROUND;
  u64 h=v0^v1^v2^v3; return h^(h>>32);
}
ENTRY(load)
