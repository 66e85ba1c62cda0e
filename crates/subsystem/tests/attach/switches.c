// Switches of many shapes, and other jumps whose targets are not in the instruction.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t u64;
#define NOINLINE __attribute__((noinline))

static volatile u64 sink;
NOINLINE u64 mix(u64 a, u64 b) { return (a ^ (b << 7)) * 0x9e3779b97f4a7c15u + (a >> 13); }
NOINLINE static u64 one(u64 a) { return a + 1; }
NOINLINE static u64 two(u64 a) { return a * 2 ^ sink; }
NOINLINE static u64 three(u64 a) { return mix(a, 3); }

// Dense, from zero.
NOINLINE u64 dense(u64 n, u64 a) {
    switch (n) {
    case 0: return a + 17;
    case 1: return a * 5;
    case 2: return a ^ 0xff;
    case 3: return a - n;
    case 4: return mix(a, 4);
    case 5: return a >> 3;
    case 6: return ~a;
    case 7: return one(a) + two(a);
    default: return 0;
    }
}

// From a negative number, with holes, of a narrow type.
NOINLINE u64 holes(signed char n, u64 a) {
    switch (n) {
    case -7: a += 3; break;
    case -6: a *= 3;
    case -4: a ^= 0x55; break;
    case -1: a = mix(a, 1); break;
    case 0: a = two(a);
    case 2: a += 9; break;
    case 5: case 6: case 9: a = ~a; break;
    case 11: a -= 4; break;
    }
    return a * 3;
}

// Far from zero.
NOINLINE u64 far_off(int n, u64 a) {
    switch (n) {
    case 100000: return a + 1;
    case 100001: return mix(a, 2);
    case 100002: return a * 3;
    case 100003: return a ^ 4;
    case 100004: return a - 5;
    case 100006: return two(a);
    case 100007: return a | 7;
    }
    return a & 0xffff;
}

// No default can be.
NOINLINE u64 complete(unsigned n, u64 a) {
    switch (n & 7) {
    case 0: return a + 1;
    case 1: return mix(a, 2);
    case 2: return a * 3;
    case 3: return a ^ 4;
    case 4: return a - 5;
    case 5: return two(a);
    case 6: return a | 7;
    case 7: return a >> 8;
    }
    __builtin_unreachable();
}

// A loop with two switches, whose tables are worth a register each.
NOINLINE u64 machine(const unsigned char *text, u64 len, u64 a) {
    u64 state = 0;
    for (u64 i = 0; i < len; i++) {
        switch (text[i] & 15) {
        case 0: state = 1; a += i; break;
        case 1: state = 2; a ^= i; break;
        case 2: state = 3; a *= 3; break;
        case 3: if (a & 1) state = 4; break;
        case 4: a = one(a); break;
        case 5: a = mix(a, state); state = 5; break;
        case 6: a -= state; break;
        case 7: state ^= 3; break;
        case 8: state = a & 7; break;
        case 9: continue;
        case 11: a = a << 3 | a >> 61; break;
        default: state = 6;
        }
        switch (state) {
        case 0: a ^= 11; break;
        case 1: a += 22; break;
        case 2: a = two(a); break;
        case 3: a *= 7; break;
        case 4: state = 0; break;
        case 5: a ^= state << 9; break;
        case 6: a = ~a; break;
        }
    }
    return a ^ state;
}

// So much at hand that the table's address is put aside.
NOINLINE u64 crowded(const unsigned char *text, u64 len, const u64 *v) {
    u64 a = v[0], b = v[1], c = v[2], d = v[3], e = v[4], f = v[5], g = v[6], h = v[7], k = v[8], m = v[9], n = v[10];
    for (u64 i = 0; i < len; i++) {
        switch (text[i] % 13) {
        case 0: a += b; break;
        case 1: b ^= c + i; break;
        case 2: c *= d | 1; break;
        case 3: d -= e; break;
        case 4: e ^= f >> 3; break;
        case 5: f += g * 3; break;
        case 6: g = mix(g, h); break;
        case 7: h ^= k; break;
        case 8: k += m ^ n; break;
        case 9: m = m << 5 | m >> 59; break;
        case 10: n -= a; break;
        case 11: a ^= n; b += k; break;
        }
    }
    return a ^ b ^ c ^ d ^ e ^ f ^ g ^ h ^ k ^ m ^ n;
}

// Cases that are rare stand elsewhere.
NOINLINE u64 rare(unsigned n, u64 a) {
    switch (n) {
    case 0: return a + 3;
    case 1: fprintf(stderr, "rare %d\n", (int)a); abort();
    case 2: return mix(a, 8);
    case 3: return a * 9;
    case 4: if (a == 77) { perror("rarer"); exit(3); } return a ^ 5;
    case 5: fprintf(stderr, "rarest\n"); abort();
    case 6: return two(a);
    case 7: return a - 1;
    }
    return a;
}

__attribute__((cold, noinline)) void complain(u64 a) { sink ^= a; }

// A switch in what stands elsewhere, that leads back.
NOINLINE u64 cold_switch(unsigned n, u64 a) {
    if (__builtin_expect(a == 12345, 0)) {
        complain(a);
        switch (n) {
        case 0: a = 1; break;
        case 1: complain(n); a = 7; break;
        case 2: a ^= 4; break;
        case 3: complain(1); goto back;
        case 4: a *= 3; break;
        case 5: a += 3;
        case 6: complain(2); break;
        }
    }
    a += n;
back:
    return mix(a, n);
}

// Through pointers to labels: threaded code.
NOINLINE u64 threaded(const unsigned char *code, u64 a) {
    static const void *const places[] = {&&add, &&sub, &&times, &&twist, &&call, &&end};
#define NEXT goto *places[*code++]
    NEXT;
add: a += 3; NEXT;
sub: a -= 5; NEXT;
times: a *= 7; NEXT;
twist: a ^= a >> 9; NEXT;
call: a = one(a); NEXT;
end: return a;
}

// The same with distances from a label.
NOINLINE u64 distances(const unsigned char *code, u64 a) {
    static const int places[] = {&&add - &&add, &&sub - &&add, &&times - &&add, &&end - &&add};
#define STEP goto *(&&add + places[*code++ & 3])
    STEP;
add: a += 3; STEP;
sub: a -= 5; STEP;
times: a *= 7; STEP;
end: return a;
}

// Out of the function: by an argument, from a table of functions, through an object, by what somebody has returned.
typedef u64 (*function)(u64);
NOINLINE u64 by_argument(u64 a, function f) { return f(a ^ 1); }
static const function table[] = {one, two, three, one};
NOINLINE u64 by_table(u64 a, unsigned n) { return table[n & 3](a + n); }
struct object { u64 pad; const function *methods; };
NOINLINE u64 by_object(struct object *o, u64 a) { return o->methods[1](a); }
NOINLINE static function find(unsigned n) { return table[(n + 1) & 3]; }
NOINLINE u64 by_return(u64 a, unsigned n) { return find(n)(a); }
NOINLINE u64 by_choice(u64 a, unsigned n) { function f = n & 1 ? one : two; sink ^= n; return f(a); }
NOINLINE u64 both(unsigned n, u64 a, function f) {
    switch (n) {
    case 0: return f(a);
    case 1: return a + 2;
    case 2: return f(a + 3);
    case 3: return a * 3;
    case 4: return one(a);
    case 5: return table[a & 3](a);
    case 6: return a;
    }
    return f(0);
}

// Strings instead of numbers, nested, and a table in a tail.
NOINLINE const char *name(unsigned n) {
    switch (n) {
    case 0: return "nought";
    case 1: return "one";
    case 2: sink++; return "two";
    case 3: return getenv("NO_SUCH_VARIABLE") ? "set" : "unset";
    case 4: return "four";
    case 5: sink ^= 3; return "five";
    default: return "many";
    }
}
NOINLINE u64 nested(unsigned n, unsigned m, u64 a) {
    switch (n) {
    case 0:
        switch (m) {
        case 0: return mix(a, 1);
        case 1: return a + 2;
        case 2: return two(a);
        case 3: return a ^ 8;
        case 4: return a * 11;
        case 5: return a - 6;
        }
        return 3;
    case 1: a = one(a); break;
    case 2: a ^= m; break;
    case 3: return dense(m, a);
    case 4: a *= m; break;
    case 5: a = mix(a, m); break;
    }
    return a + m;
}

static u64 everything(u64 seed) {
    unsigned char text[64], code[16];
    u64 a = seed, v[11];
    for (int i = 0; i < 64; i++) text[i] = (a = mix(a, i)) >> 17;
    for (int i = 0; i < 16; i++) code[i] = i == 15 ? 5 : text[i] % 5;
    for (int i = 0; i < 11; i++) v[i] = a = mix(a, i);
    for (unsigned n = 0; n < 14; n++) {
        a ^= dense(n, a);
        a += holes((int)n - 8, a);
        a ^= far_off(99999 + n, a);
        a += complete(n, a);
        a ^= rare(n == 1 || n == 5 ? 2 : n, a);
        a += cold_switch(n, n & 1 ? a : 12345);
        a ^= nested(n % 7, n, a) + both(n, a, three) + strlen(name(n));
        a += by_argument(a, two) + by_table(a, n) + by_return(a, n) + by_choice(a, n);
        a ^= by_object(&(struct object){0, table}, a);
    }
    a ^= machine(text, 64, a) + crowded(text, 64, v) + threaded(code, a);
    code[15] = 3;
    for (int i = 0; i < 15; i++) code[i] %= 3;
    return a ^ distances(code, a);
}

int main(int argc, char **argv) {
    u64 rounds = argc > 1 ? strtoull(argv[1], 0, 10) : 10, a = 1;
    if (argc > 2) { // Waits to be looked at.
        puts("ready");
        fflush(stdout);
        getchar();
    }
    for (u64 i = 0; i < rounds; i++) a = everything(a + i);
    printf("%llx %llx\n", (unsigned long long)a, (unsigned long long)sink);
    return 5;
}
