// The declaration of a cell, an `Operation` in its __init__.py, arrives as -D options; the cell names what it has of each
// kind, in a list STATE_NAMES, GATE_NAMES ... that may be empty, and does not compile where the two disagree.
#pragma once

#define TEXT_(...) #__VA_ARGS__
#define TEXT(...) TEXT_(__VA_ARGS__)
// The names become 0, 1, ...
#define NAMED(kind, ...)                                                                \
    enum { before_##kind = -1, __VA_ARGS__ };                                           \
    _Static_assert(sizeof((int[]){0, __VA_ARGS__}) == (1 + (kind)) * sizeof(int),       \
                   "declaration: " #kind "=" TEXT(kind) " but cpu.c names {" TEXT(__VA_ARGS__) "}")
