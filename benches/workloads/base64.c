#include "bench.h"
/* base64 of 768 bytes into the buffer's last KiB: shifts, comparisons, byte stores */
INLINE u8 digit(u32 x){ x&=63; return x<26?x+'A':x<52?x+('a'-26):x<62?x-52+'0':x==62?'+':'/'; }
INLINE u64 load(u8 *mem){
  u8 *out=mem+7168; u64 sum=0;
  #pragma clang loop unroll(disable)
  for(u32 i=0;i<256;i++){
    u32 v=(u32)mem[i*3]<<16|(u32)mem[i*3+1]<<8|mem[i*3+2];
    out[i*4]=digit(v>>18); out[i*4+1]=digit(v>>12); out[i*4+2]=digit(v>>6); out[i*4+3]=digit(v);
    sum=sum*33+*(u32*)(out+i*4);
  }
  return sum^(sum>>32);
}
ENTRY(load)
