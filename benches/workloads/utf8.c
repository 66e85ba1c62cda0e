#include "bench.h"
/* a state machine over 2 KiB: one branch or more per byte */
INLINE u64 load(u8 *mem){
  u32 need=0, chars=0, bad=0;
  #pragma clang loop unroll(disable)
  for(u32 i=0;i<2048;i++){
    u8 c=mem[i];
    if(need){ if((c&0xc0)==0x80){ need--; if(!need) chars++; continue; } bad++; need=0; }
    if(c<0x80) chars++;
    else if((c&0xe0)==0xc0) need=1;
    else if((c&0xf0)==0xe0) need=2;
    else if((c&0xf8)==0xf0) need=3;
    else bad++;
  }
  return chars*65536+bad;
}
ENTRY(load)
