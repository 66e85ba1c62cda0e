/* Works in `inner`, two thirds of the time for `left` and one for `right`, and writes `word` so many times. */
#include <stdio.h>
#include <stdlib.h>

volatile unsigned long sum;
volatile unsigned long word;

__attribute__((noinline)) void inner(unsigned long n)
{
	for (unsigned long i = 0; i < n; i++)
		sum += i * i;
}

__attribute__((noinline)) void left(unsigned long n)
{
	inner(2 * n);
	sum++;
}

__attribute__((noinline)) void right(unsigned long n)
{
	inner(n);
	sum++;
}

__attribute__((noinline)) void writes(unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		word = i;
}

int main(int argc, char **argv)
{
	char line[16];

	printf("ready\n%lx\n", (unsigned long)&word);
	fflush(stdout);
	/* Who lets it run at once gives it no line. */
	if (!fgets(line, sizeof(line), stdin))
		line[0] = 0;
	for (int i = 0; i < 100; i++) {
		left(strtoul(argv[1], NULL, 10));
		right(strtoul(argv[1], NULL, 10));
	}
	writes(argc > 2 ? atoi(argv[2]) : 0);
	printf("%lu %lu\n", sum, word);
	return 0;
}
