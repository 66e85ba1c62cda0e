// Functions whose first instructions are more than that, as compilers make them at one level or another.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define NOINLINE __attribute__((noinline, noclone))

// Its first instruction names its own address.
typedef void (*Callback)(void);
static Callback queue[4];
static int queued;
NOINLINE void later(Callback callback) { queue[queued++] = callback; }
NOINLINE void again(void) { later(again); }
NOINLINE int is_again(Callback callback) { return callback == again; }

// A loop leads to its first instruction, with values below the stack pointer.
NOINLINE int rounds(volatile int *times) {
	volatile int kept[28];
	int now;
next:
	now = *times;
	*times = now + 1;
	if (now == 0) {
		for (int i = 0; i < 28; i++) kept[i] = i * i + 1;
		goto next;
	}
	if (now < 3) {
		kept[now] += now;
		goto next;
	}
	unsigned sum = 0;
	for (int i = 0; i < 28; i++) sum = sum * 3 + kept[i];
	return sum;
}

// Labels in its first bytes, by addresses, by distances, and by addresses in a packed struct.
NOINLINE int labels(const unsigned char *ops) {
	static void *const table[] = {&&inc, &&twice, &&end};
	int value = 0;
inc:
	value++;
	goto *table[*ops++];
twice:
	value *= 2;
	goto *table[*ops++];
end:
	return value;
}

NOINLINE int distances(const unsigned char *ops) {
	static const int table[] = {0, &&twice - &&inc, &&end - &&inc};
	int value = 0;
inc:
	value++;
	goto *(&&inc + table[*ops++]);
twice:
	value *= 2;
	goto *(&&inc + table[*ops++]);
end:
	return value;
}

struct __attribute__((packed)) Packed {
	char name;
	void *label;
};
NOINLINE int packed(const unsigned char *ops) {
	static const struct Packed table[] = {{1, &&inc}, {2, &&twice}, {3, &&end}, {4, &&dec}};
	int value = 1;
	goto *table[*ops++].label;
dec:
	value--;
inc:
	value++;
twice:
	value *= 2;
	goto *table[*ops++].label;
end:
	return value;
}

int main(int argc, char **argv) {
	static const unsigned char ops[] = {0, 0, 1, 0, 1, 1, 0, 2}, more[] = {0, 0, 1, 3, 0, 1, 3, 1, 0, 2};
	unsigned sum = 0, wrong = 0;
	int times = argc > 1 ? atoi(argv[1]) : 100;
	later(again);
	for (int i = 0; i < times; i++) {
		Callback callback = queue[--queued];
		wrong += !is_again(callback);
		callback();
		int round = 0;
		sum = sum * 7 + rounds(&round);
		sum = sum * 7 + labels(ops) + 3 * distances(ops) + 5 * packed(more);
	}
	printf("%u wrong %u\n", sum, wrong);
}
