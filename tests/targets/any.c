// Calls all functions of a library that the test makes, as many times as its argument says, and prints a number that all
// results have a part in.
#include <stdio.h>
#include <stdlib.h>

extern unsigned long (*const all[])(unsigned long, unsigned long);
extern const unsigned count;

int main(int argc, char **argv)
{
	unsigned long sum = 1, rounds = argc > 1 ? atol(argv[1]) : 1;

	for (unsigned long round = 0; round < rounds; round++)
		for (unsigned i = 0; i < count; i++)
			sum = sum * 31 + all[i](sum & 0xfffff, i + round);
	printf("%016lx\n", sum);
	return 7;
}
