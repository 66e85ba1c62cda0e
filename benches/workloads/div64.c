#include "bench.h"
/* 64-bit quotients and remainders by numbers from memory, small ones and large ones */
INLINE u64 load(u8 *mem){
  u64 acc=1;
  #pragma clang loop unroll(disable)
  for(u32 i=0;i<128;i++){ u64 n=((u64*)mem)[i], d=((u32*)mem)[i+300]; if(i&1) n>>=33; acc+=n/(d|1)+n%((d>>8)|3); }
  return acc^(acc>>32);
}
ENTRY(load)
