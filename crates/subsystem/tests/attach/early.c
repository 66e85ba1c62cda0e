/* Calls a function in a constructor, before main, and ends with a status of its own. */
#include <stdio.h>

__attribute__((noinline, noclone)) long early(long x)
{
	asm volatile("" ::: "memory");
	return x * 3;
}

__attribute__((constructor)) static void start(void)
{
	for (long i = 0; i < 10; i++)
		if (early(i) != 3 * i)
			__builtin_trap();
}

int main(int argc, char **argv)
{
	for (long i = 0; i < 100; i++)
		early(i);
	printf("%d %s\n", argc, argc > 1 ? argv[1] : "");
	return 42;
}
