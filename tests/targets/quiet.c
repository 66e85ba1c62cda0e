// Waits, undumpable if told so: `quiet [undumpable]`.
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
__attribute__((noinline, noclone)) uint64_t probed(uint64_t a) { __asm__ volatile("" : "+r"(a)); return a * 3; }
int main(int argc, char **argv) {
	if (argc > 1 && !strcmp(argv[1], "undumpable")) prctl(PR_SET_DUMPABLE, 0);
	puts("ready");
	fflush(stdout);
	int c = getchar();
	printf("%d\n", (int)probed(c == EOF));
	return 0;
}
