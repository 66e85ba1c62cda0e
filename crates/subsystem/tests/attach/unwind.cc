// What walks stacks: exceptions, longjmp, backtrace, thread exit; all through probed frames.
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <execinfo.h>
#include <pthread.h>
#include <stdexcept>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

static jmp_buf jump;
static sigjmp_buf sigjump;
static int depth;

extern "C" NOINLINE int victim(int k)
{
	if (k == 1)
		throw std::runtime_error("thrown");
	if (k == 2)
		longjmp(jump, 1);
	if (k == 3) {
		void *frames[64];
		depth = backtrace(frames, 64);
	}
	if (k == 4)
		pthread_exit((void *)44);
	if (k == 5)
		raise(SIGUSR1);
	asm volatile("" ::: "memory");
	return k + 1;
}

extern "C" NOINLINE int outer(int k, int n)
{
	int r = n ? outer(k, n - 1) : victim(k);
	asm volatile("" ::"r"(r));
	return r + 1;
}

struct Cleanup {
	int *count;
	~Cleanup() { ++*count; }
};

extern "C" NOINLINE int guarded(int k, int *count)
{
	Cleanup cleanup{count};
	int r = outer(k, 3);
	asm volatile("" ::"r"(r));
	return r;
}

static void handler(int) { siglongjmp(sigjump, 1); }

static void *thread(void *)
{
	outer(4, 2);
	return nullptr;
}

int main()
{
	char line[64];
	setvbuf(stdout, nullptr, _IOLBF, 0);
	printf("ready\n");
	while (fgets(line, sizeof line, stdin)) {
		if (!strncmp(line, "end", 3))
			break;
		int caught = 0, cleaned = 0, plain = 0, jumped = 0, sig = 0;
		for (int i = 0; i < 500; i++) {
			try {
				guarded(1, &cleaned);
			} catch (std::exception &e) {
				caught += !strcmp(e.what(), "thrown");
			}
			plain += guarded(10, &cleaned);
		}
		for (int i = 0; i < 500; i++)
			if (setjmp(jump))
				jumped++;
			else
				outer(2, 2);
		signal(SIGUSR1, handler);
		for (int i = 0; i < 200; i++)
			if (sigsetjmp(sigjump, 1))
				sig++;
			else
				outer(5, 1);
		outer(3, 5);
		pthread_t t;
		void *result;
		pthread_create(&t, nullptr, thread, nullptr);
		pthread_join(t, &result);
		printf("caught %d cleaned %d plain %d jumped %d sig %d thread %ld\n", caught, cleaned, plain, jumped, sig,
		       (long)result);
		printf("depth %d\n", depth);
	}
	return 3;
}
