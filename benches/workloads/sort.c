#include "bench.h"
/* shell sort of 64 numbers, from a copy each time: loads, stores and unpredictable branches */
INLINE u64 load(u8 *mem){
  u32 *a=(u32*)(mem+6144), *from=(u32*)mem; u64 sum=0;
  #pragma clang loop unroll(disable) vectorize(disable)
  for(u32 i=0;i<64;i++) a[i]=from[i];
  #pragma clang loop unroll(disable)
  for(u32 g=0;g<4;g++){
    u32 gap=g==0?23:g==1?10:g==2?4:1;
    #pragma clang loop unroll(disable)
    for(u32 i=gap;i<64;i++){
      u32 x=a[i&63], j=i;
      #pragma clang loop unroll(disable)
      for(u32 n=0;n<64;n++){
        if(j<gap) break;
        u32 y=a[(j-gap)&63];
        if(y<=x) break;
        a[j&63]=y; j-=gap;
      }
      a[j&63]=x;
    }
  }
  #pragma clang loop unroll(disable) vectorize(disable)
  for(u32 i=0;i<64;i++) sum=sum*7+a[i];
  return sum^(sum>>32);
}
ENTRY(load)
