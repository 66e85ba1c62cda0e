/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hooks of an application at which verified programs decide; see docs/embedding.md.
 *
 * Every object is used from any thread; freeing one that others still need is fine: what is attached stays attached until
 * its attachment is freed. Functions that can fail take a place for an error, which may be NULL; it is freed by
 * skep_error_free(). Strings are UTF-8.
 */
#ifndef SKEP_H
#define SKEP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct skep_host skep_host;
typedef struct skep_hook skep_hook;
typedef struct skep_plugin skep_plugin;
typedef struct skep_attachment skep_attachment;
typedef struct skep_error skep_error;

/* What went wrong, in a line; and, of a program that was not accepted, why, with the lines of its source. NULL: nothing. */
const char *skep_error_message(const skep_error *error);
const char *skep_error_explanation(const skep_error *error);
void skep_error_free(skep_error *error);

/* Room for so many calls at the same time (0: four per CPU). */
skep_host *skep_host_new(uint32_t slots, skep_error **error);
void skep_host_free(skep_host *host);

enum skep_field_type {
	SKEP_U8, SKEP_U16, SKEP_U32, SKEP_U64,
	SKEP_S8, SKEP_S16, SKEP_S32, SKEP_S64,
	/* Two pointers, NAME and NAME_end: programs read, or write, the bytes between them. */
	SKEP_BYTES, SKEP_BYTES_MUT,
};

/* A member of a context, which programs may read. */
struct skep_field {
	const char *name;
	uint32_t offset;
	/* One of enum skep_field_type. */
	uint32_t type;
	/* Of an array: how many; else 0. */
	uint32_t count;
	/* Not 0: programs may write it. Pointers they never may. */
	uint32_t write;
};

struct skep_hook_options {
	/* The context: its name in programs, its size, and its members in order of their offsets. */
	const char *struct_name;
	uint32_t size;
	uint32_t nfields;
	const struct skep_field *fields;
	/* What programs may return, if `bounded` is not 0. */
	uint32_t bounded;
	int32_t returns_min;
	int32_t returns_max;
	/* The next program is asked after these results only; after any, if `proceed` is NULL. */
	uint32_t nproceed;
	const int32_t *proceed;
	/* Most back edges, calls and helper calls of a run; 0: no limit. */
	uint64_t budget;
	/* Most nanoseconds of a run; 0: no limit. */
	uint64_t time_ns;
};

/* A hook; its programs are in section "hook/NAME". What its options name is kept for as long as the process lives. */
skep_hook *skep_hook_new(skep_host *host, const char *name, const struct skep_hook_options *options,
			 skep_error **error);
void skep_hook_free(skep_hook *hook);

/* Loads the programs of an object, each for one of these hooks, with `quota` bytes for maps and code; `name` is for messages. */
skep_plugin *skep_plugin_load(skep_host *host, skep_hook *const *hooks, size_t nhooks, uint64_t quota, const char *name,
			      const void *object, size_t size, skep_error **error);
/* Replaces the programs wherever they are attached; maps that are defined alike stay. 0, or -1: nothing has changed. */
int skep_plugin_reload(skep_plugin *plugin, const char *name, const void *object, size_t size, skep_error **error);
void skep_plugin_free(skep_plugin *plugin);

/*
 * Elements of a plug-in's map: 0, or a negative error number (-ENOENT: no such map or key; -EINVAL: other sizes than the map's).
 * Values of per-CPU maps are those of all slots, one behind the other.
 */
int skep_map_lookup(const skep_plugin *plugin, const char *map, const void *key, size_t key_size, void *value,
		    size_t value_size);
int skep_map_update(const skep_plugin *plugin, const char *map, const void *key, size_t key_size, const void *value,
		    size_t value_size, uint64_t flags);
int skep_map_delete(const skep_plugin *plugin, const char *map, const void *key, size_t key_size);

/* Attaches a program until the attachment is freed. Those with lower priority numbers run first. */
skep_attachment *skep_attach(skep_hook *hook, const skep_plugin *plugin, const char *program, int32_t priority,
			     skep_error **error);
void skep_attachment_free(skep_attachment *attachment);

struct skep_verdict {
	/* What the last program that ran to its end returned, if `has_value` is not 0. */
	int32_t value;
	uint32_t has_value;
	/* Programs that ran, and those of them whose run was ended. */
	uint32_t ran;
	uint32_t over_budget;
};

/*
 * Runs the programs on a context, of which this call is the only user meanwhile. 0, or -EBUSY: all slots are taken. Never
 * blocks.
 */
int skep_call(const skep_hook *hook, void *context, struct skep_verdict *verdict);

#ifdef __cplusplus
}
#endif

#endif
