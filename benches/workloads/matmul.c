#include "bench.h"
/* 16 x 16 matrices of u32: nested loops, multiplication, two indices */
INLINE u64 load(u8 *mem){
  u32 *a=(u32*)mem, *b=(u32*)(mem+1024), acc=0;
  #pragma clang loop unroll(disable)
  for(u32 i=0;i<16;i++){
    #pragma clang loop unroll(disable)
    for(u32 j=0;j<16;j++){
      u32 s=0;
      #pragma clang loop unroll(disable) vectorize(disable)
      for(u32 k=0;k<16;k++) s+=a[i*16+k]*b[k*16+j];
      acc=acc*31+s;
    }
  }
  return acc;
}
ENTRY(load)
