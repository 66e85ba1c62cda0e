// SPDX-License-Identifier: MIT OR Apache-2.0
// An application in C with a hook: what tests/c.rs builds and runs. Arguments: two versions of a plug-in, and a wrong one.
#include "skep.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sum {
	uint64_t total;
	uint32_t version;
	uint32_t key;
};

static void *slurp(const char *path, size_t *size)
{
	FILE *f = fopen(path, "rb");
	char *bytes = malloc(1 << 20);

	assert(f && bytes);
	*size = fread(bytes, 1, 1 << 20, f);
	fclose(f);
	return bytes;
}

int main(int argc, char **argv)
{
	const struct skep_field fields[] = {
		{ .name = "total", .offset = offsetof(struct sum, total), .type = SKEP_U64, .write = 1 },
		{ .name = "version", .offset = offsetof(struct sum, version), .type = SKEP_U32, .write = 1 },
		{ .name = "key", .offset = offsetof(struct sum, key), .type = SKEP_U32 },
	};
	struct skep_hook_options options = {
		.struct_name = "sum", .size = sizeof(struct sum), .nfields = 3, .fields = fields,
		.bounded = 1, .returns_min = 0, .returns_max = 7, .budget = 2000, .time_ns = 1000000000,
	};
	struct skep_verdict v;
	struct sum sum = { 0 };
	uint64_t calls;
	uint32_t key = 1;
	skep_error *error = NULL;
	skep_host *host = skep_host_new(0, &error);
	size_t size[3];
	void *object[3];

	assert(argc == 4 && host && !error);
	for (int i = 0; i < 3; i++)
		object[i] = slurp(argv[i + 1], &size[i]);
	skep_hook *hook = skep_hook_new(host, "sum", &options, &error);
	assert(hook && skep_call(hook, &sum, &v) == 0 && v.ran == 0 && !v.has_value);
	skep_plugin *plugin = skep_plugin_load(host, &hook, 1, 1 << 20, argv[1], object[0], size[0], &error);
	assert(plugin);
	skep_attachment *add = skep_attach(hook, plugin, "add", 0, &error);
	assert(add && skep_call(hook, &sum, &v) == 0 && v.ran == 1 && v.has_value && v.value == 0);
	assert(sum.total == 1 && sum.version == 1);

	/* A wrong version changes nothing, and says why. */
	assert(skep_plugin_reload(plugin, "wrong", object[2], size[2], &error) == -1);
	printf("%s\n%s\n", skep_error_message(error), skep_error_explanation(error));
	skep_error_free(error);
	assert(skep_plugin_reload(plugin, "junk", "junk", 4, NULL) == -1);
	assert(skep_call(hook, &sum, &v) == 0 && sum.total == 2 && sum.version == 1);

	/* A right one does; the map stays. */
	skep_attachment *endless = skep_attach(hook, plugin, "endless", 1, &error);
	assert(endless && skep_call(hook, &sum, &v) == 0 && v.ran == 2 && v.over_budget == 1);
	skep_attachment_free(endless);
	assert(skep_plugin_reload(plugin, argv[2], object[1], size[1], &error) == 0);
	assert(skep_call(hook, &sum, NULL) == 0 && sum.total == 4 && sum.version == 2);
	assert(skep_map_lookup(plugin, "calls", &key, 4, &calls, 8) == 0 && calls == 3);
	calls = 40;
	assert(skep_map_update(plugin, "calls", &key, 4, &calls, 8, 0) == 0);
	assert(skep_map_lookup(plugin, "calls", &key, 4, &calls, 8) == 0 && calls == 40);
	assert(skep_map_lookup(plugin, "calls", &key, 4, &calls, 4) == -EINVAL);
	assert(skep_map_lookup(plugin, "none", &key, 4, &calls, 8) == -ENOENT);
	assert(skep_map_delete(plugin, "calls", &key, 4) == -EINVAL);

	/* What makes no sense is told. */
	error = NULL;
	assert(!skep_attach(hook, plugin, "subtract", 0, &error) && error);
	printf("%s\n", skep_error_message(error));
	skep_error_free(error);
	options.size = 12;
	assert(!skep_hook_new(host, "short", &options, &error));
	printf("%s\n", skep_error_message(error));
	skep_error_free(error);
	assert(!skep_hook_new(host, NULL, &options, NULL) && !skep_hook_new(NULL, "h", &options, NULL));
	assert(!skep_error_message(NULL) && !skep_error_explanation(NULL));

	/* In any order. */
	skep_host_free(host);
	skep_plugin_free(plugin);
	assert(skep_call(hook, &sum, &v) == 0 && v.ran == 1);
	skep_attachment_free(add);
	skep_hook_free(hook);
	skep_hook_free(NULL);
	return 0;
}
