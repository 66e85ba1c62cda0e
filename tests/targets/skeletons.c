// Skeletons as bpftool makes them, used as libbpf's documentation says. Prints `ok NAME` for each test. A line `work N` asks
// for N calls in the process given by its id and path; the answer is an empty line.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#include "client_data.skel.h"
#include "client_kprobes.skel.h"
#include "client_nested.skel.h"
#include "client_pin.skel.h"
#include "client_probes.skel.h"
#include "client_tail_filled.skel.h"
#include "usdt_arg.skel.h"

static int worker;
static const char *program;
static const char *test = "";

#define MUST(condition)                                                                                  \
	do {                                                                                             \
		if (!(condition)) {                                                                      \
			printf("failed %s: line %d: %s (errno %d)\n", test, __LINE__, #condition, errno); \
			exit(1);                                                                         \
		}                                                                                        \
	} while (0)

static void work(int n)
{
	char line[16];

	printf("work %d\n", n);
	MUST(fgets(line, sizeof(line), stdin));
}

static void moment(void)
{
	struct timespec t = { .tv_nsec = 2000000 };

	nanosleep(&t, NULL);
}

// What was closed goes a moment later.
static bool stays(volatile u64 *value)
{
	u64 before = 0;

	for (int i = 0; i < 500; i++) {
		before = *value;
		work(3);
		if (*value == before)
			return true;
		moment();
	}
	return false;
}

static int run(struct bpf_program *prog)
{
	char packet[64] = { 0 };
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = packet, .data_size_in = sizeof(packet));

	MUST(!bpf_prog_test_run_opts(bpf_program__fd(prog), &opts));
	return opts.retval;
}

static int add_one(void *ctx, void *data, size_t size)
{
	(void)data;
	MUST(size == 16 || size == 24);
	++*(int *)ctx;
	return 0;
}

static void data(void)
{
	struct client_data *s = client_data__open();

	MUST(s);
	s->rodata->step = 5;
	s->data->sum = 1000;
	MUST(!client_data__load(s));
	for (u64 n = 1; n <= 10; n++) {
		MUST(run(s->progs.counted) == 7);
		MUST(s->bss->runs == n && s->data->sum == 1000 + 5 * n);
	}
	s->data->sum = 0;
	run(s->progs.counted);
	u32 key = 11;
	u64 value = 0;
	MUST(!bpf_map__lookup_elem(s->maps.by_run, &key, sizeof(key), &value, sizeof(value), 0) && value == 5);
	client_data__destroy(s);
}

static void ring(void)
{
	struct client_data *s = client_data__open_and_load();
	int seen = 0;

	MUST(s);
	int fd = bpf_map__fd(s->maps.ring);
	struct ring_buffer *rb = ring_buffer__new(fd, add_one, &seen, NULL);
	struct pollfd p[2] = { { .fd = fd, .events = POLLIN }, { .fd = ring_buffer__epoll_fd(rb), .events = POLLIN } };

	MUST(rb);
	// poll(2), on the map itself and on libbpf's own set.
	MUST(poll(p, 1, 0) == 0 && p[0].revents == 0);
	MUST(poll(p, 1, 20) == 0);
	run(s->progs.counted);
	MUST(poll(p, 2, 5000) == 2 && p[0].revents == POLLIN && p[1].revents == POLLIN);
	MUST(poll(p, 1, -1) == 1);
	MUST(ring_buffer__poll(rb, 1000) == 1 && seen == 1);
	MUST(poll(p, 1, 0) == 0 && p[0].revents == 0);
	p[0].fd = bpf_map__fd(s->maps.by_run);
	MUST(poll(p, 1, 0) == 1 && p[0].revents == POLLERR);
	ring_buffer__free(rb);
	client_data__destroy(s);
}

static void on_sample(void *ctx, int cpu, void *data, u32 size)
{
	(void)cpu, (void)data;
	MUST(size >= 24);
	++*(int *)ctx;
}

static void perf(void)
{
	LIBBPF_OPTS(bpf_uprobe_opts, opts, .bpf_cookie = 0xabc, .func_name = "work");
	struct client_probes *s = client_probes__open();
	int seen = 0, ringed = 0;

	MUST(s);
	bpf_program__set_autoload(s->progs.on_kprobe, false);
	MUST(!client_probes__load(s));
	struct perf_buffer *pb = perf_buffer__new(bpf_map__fd(s->maps.perf), 8, on_sample, NULL, &seen, NULL);
	struct ring_buffer *rb = ring_buffer__new(bpf_map__fd(s->maps.ring), add_one, &ringed, NULL);
	MUST(pb && rb);
	s->links.on_entry = bpf_program__attach_uprobe_opts(s->progs.on_entry, worker, program, 0, &opts);
	opts.retprobe = true;
	s->links.on_return = bpf_program__attach_uprobe_opts(s->progs.on_return, worker, program, 0, &opts);
	MUST(s->links.on_entry && s->links.on_return);
	work(10);
	for (int i = 0; i < 500 && (seen < 20 || ringed < 20); i++) {
		perf_buffer__poll(pb, 10);
		ring_buffer__poll(rb, 10);
	}
	MUST(seen == 20 && ringed == 20);
	perf_buffer__free(pb);
	ring_buffer__free(rb);
	client_probes__destroy(s);
}

static void kprobes(void)
{
	struct client_kprobes *s = client_kprobes__open();

	MUST(s);
	// These have no place of their own.
	bpf_program__set_autoattach(s->progs.on_place, false);
	bpf_program__set_autoattach(s->progs.on_place_return, false);
	MUST(!client_kprobes__load(s));
	MUST(!client_kprobes__attach(s));
	work(10);
	MUST(s->bss->entries == 10 && s->bss->returns == 10);
	MUST(s->bss->many == 10 && s->bss->many_returns == 10);
	MUST(s->bss->last == 10 && s->bss->cookies == 0 && s->bss->ips != 0);
	client_kprobes__detach(s);
	MUST(stays((volatile u64 *)&s->bss->entries) && stays((volatile u64 *)&s->bss->many_returns));
	client_kprobes__destroy(s);
}

static void cookies(void)
{
	struct client_kprobes *s = client_kprobes__open_and_load();
	const char *names[] = { "work" };
	__u64 many[] = { 1000000 };

	MUST(s);
	LIBBPF_OPTS(bpf_kprobe_opts, one, .bpf_cookie = 1);
	s->links.on_entry = bpf_program__attach_kprobe_opts(s->progs.on_entry, "work", &one);
	one.retprobe = true;
	one.bpf_cookie = 100;
	s->links.on_return = bpf_program__attach_kprobe_opts(s->progs.on_return, "work", &one);
	LIBBPF_OPTS(bpf_kprobe_multi_opts, multi, .syms = names, .cookies = many, .cnt = 1);
	s->links.on_many = bpf_program__attach_kprobe_multi_opts(s->progs.on_many, NULL, &multi);
	multi.retprobe = true;
	many[0] = 100000000;
	s->links.on_many_returns = bpf_program__attach_kprobe_multi_opts(s->progs.on_many_returns, NULL, &multi);
	MUST(s->links.on_entry && s->links.on_return && s->links.on_many && s->links.on_many_returns);
	work(7);
	MUST(s->bss->cookies == 707000707);
	const char *none[] = { "no_function_of_that_name" };
	LIBBPF_OPTS(bpf_kprobe_multi_opts, absent, .syms = none, .cnt = 1);
	MUST(!bpf_program__attach_kprobe_multi_opts(s->progs.on_many, NULL, &absent) && errno == ENOENT);
	MUST(!bpf_program__attach_kprobe(s->progs.on_entry, false, "no_function_of_that_name") && errno == ENOENT);
	client_kprobes__destroy(s);
}

static void uprobe_multi(void)
{
	struct client_kprobes *s = client_kprobes__open_and_load();
	const char *names[] = { "work" };
	__u64 cookie[] = { 3 };

	MUST(s);
	LIBBPF_OPTS(bpf_uprobe_multi_opts, multi, .syms = names, .cookies = cookie, .cnt = 1);
	s->links.on_place = bpf_program__attach_uprobe_multi(s->progs.on_place, worker, program, NULL, &multi);
	MUST(s->links.on_place);
	LIBBPF_OPTS(bpf_uprobe_multi_opts, pattern, .retprobe = true);
	s->links.on_place_return = bpf_program__attach_uprobe_multi(s->progs.on_place_return, worker, program, "wor?", &pattern);
	MUST(s->links.on_place_return);
	work(5);
	MUST(s->bss->entries == 5 && s->bss->returns == 5 && s->bss->cookies == 15);
	client_kprobes__destroy(s);
}

static void pins(void)
{
	struct client_pin *s = client_pin__open_and_load();

	MUST(s);
	run(s->progs.add);
	MUST(!bpf_program__pin(s->progs.add, "/sys/fs/bpf/skeleton_add"));
	client_pin__destroy(s);
	s = client_pin__open_and_load();
	MUST(s);
	u32 key = 0;
	u64 total = 0;
	MUST(!bpf_map__lookup_elem(s->maps.client_total, &key, sizeof(key), &total, sizeof(total), 0) && total == 1);
	int fd = bpf_obj_get("/sys/fs/bpf/skeleton_add");
	MUST(fd >= 0 && !close(fd));
	MUST(!unlink("/sys/fs/bpf/skeleton_add") && bpf_obj_get("/sys/fs/bpf/skeleton_add") == -ENOENT);
	MUST(!bpf_map__unpin(s->maps.client_total, NULL));
	client_pin__destroy(s);
}

static void links_pinned(void)
{
	struct client_kprobes *s = client_kprobes__open_and_load();

	MUST(s);
	struct bpf_link *link = bpf_program__attach_kprobe(s->progs.on_entry, false, "work");
	MUST(link && !bpf_link__pin(link, "/sys/fs/bpf/skeleton_link"));
	bpf_link__destroy(link);
	work(4);
	MUST(s->bss->entries == 4);
	link = bpf_link__open("/sys/fs/bpf/skeleton_link");
	MUST(link && !bpf_link__unpin(link));
	work(4);
	MUST(s->bss->entries == 8);
	bpf_link__destroy(link);
	MUST(stays((volatile u64 *)&s->bss->entries));
	client_kprobes__destroy(s);
}

static void maps_in_maps(void)
{
	struct client_nested *s = client_nested__open_and_load();
	u32 key = 1;
	int fd;

	MUST(s);
	s->bss->which = 1;
	MUST(run(s->progs.add) == 1);
	fd = bpf_map__fd(s->maps.inner_a);
	MUST(!bpf_map__update_elem(s->maps.by_name, &key, sizeof(key), &fd, sizeof(fd), 0));
	MUST(run(s->progs.add) == 3);
	client_nested__destroy(s);
}

static void tail_calls(void)
{
	struct client_tail_filled *s = client_tail_filled__open_and_load();
	u32 key = 1;
	int fd;

	MUST(s && run(s->progs.first) == 22);
	fd = bpf_program__fd(s->progs.third);
	MUST(!bpf_map__update_elem(s->maps.table, &key, sizeof(key), &fd, sizeof(fd), 0));
	MUST(run(s->progs.first) == 33);
	client_tail_filled__destroy(s);
}

static void usdt(void)
{
	LIBBPF_OPTS(bpf_usdt_opts, opts, .usdt_cookie = 0xfeed);
	struct usdt_arg *s = usdt_arg__open_and_load();

	MUST(s);
	s->links.on_usdt = bpf_program__attach_usdt(s->progs.on_usdt, worker, program, "skep", "work", &opts);
	MUST(s->links.on_usdt);
	work(9);
	MUST(s->bss->hits == 9 && s->bss->first == 9 && s->bss->second == 7);
	MUST(s->bss->cookie == 0xfeed && s->bss->count == 2);
	usdt_arg__destroy(s);
}

static int say(enum libbpf_print_level level, const char *format, va_list args)
{
	// It makes up for maps that are refused with their types; nothing is to be made up for.
	MUST(!strstr(format, "Retrying"));
	return level <= LIBBPF_WARN ? vfprintf(stderr, format, args) : 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} tests[] = {
		{ "global data", data },	 { "ring buffer and poll", ring },
		{ "perf buffer", perf },	 { "kprobes by their sections", kprobes },
		{ "kprobes with cookies", cookies }, { "uprobe.multi", uprobe_multi },
		{ "pins", pins },		 { "pinned links", links_pinned },
		{ "maps in maps", maps_in_maps }, { "tail calls", tail_calls },
		{ "usdt", usdt },
	};

	if (argc != 3)
		return 2;
	worker = atoi(argv[1]);
	program = argv[2];
	setvbuf(stdout, NULL, _IOLBF, 0);
	libbpf_set_print(say);
	for (size_t i = 0; i < sizeof(tests) / sizeof(*tests); i++) {
		test = tests[i].name;
		tests[i].run();
		printf("ok %s\n", test);
	}
	puts("done");
	return 0;
}
