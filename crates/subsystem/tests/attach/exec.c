/* Executes another program from a thread that is not the leader. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

__attribute__((noinline, noclone)) long before(long x)
{
	asm volatile("" ::: "memory");
	return x + 1;
}

static char program[4096];

static void *execute(void *arg)
{
	for (long i = 0; i < 7; i++)
		before(i);
	execl(program, program, "by-thread", (char *)0);
	return arg;
}

int main(void)
{
	char line[4096];
	pthread_t thread;
	setvbuf(stdout, 0, _IOLBF, 0);
	puts("ready");
	if (!fgets(line, sizeof line, stdin) || sscanf(line, "exec %4095s", program) != 1)
		return 1;
	pthread_create(&thread, 0, execute, 0);
	pthread_join(thread, 0);
	return 2;
}
