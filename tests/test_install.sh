#!/bin/sh
# test_install.sh BUILD SOURCE CC [FLAG]...: what is installed can be found by pkg-config and by CMake,
# and linked.
set -eu
build=$1 source=$2
shift 2
directory=$(mktemp -d "${TMPDIR:-/tmp}/fkv-install-XXXXXX")
trap 'rm -rf "$directory"' EXIT
cmake --install "$build" --prefix "$directory/there" >"$directory/log" || { cat "$directory/log"; exit 1; }
cd "$directory"

pc=$(find there -name fkv.pc)
[ -n "$pc" ]
PKG_CONFIG_PATH=$directory/${pc%/*}
export PKG_CONFIG_PATH
config() {
    pkg-config "$@" fkv
}
[ "$(config --modversion)" = "$(there/bin/fkv --version | cut -d ' ' -f 2)" ]
libraries=$(config --variable=libdir)
[ -f "$(config --variable=includedir)/fkv.h" ]

# Of names, a program gets those of fkv.h and no others: it has a log_open, say, of its own.
for library in libfkv.a libfkv.so; do
    [ $library = libfkv.a ] && dynamic= || dynamic=-D
    nm $dynamic --defined-only --extern-only "$libraries/$library" >names
    grep -q ' T fkv_open$' names
    if grep ' [A-Z] ' names | grep -v ' fkv_'; then exit 1; fi
done

"$@" -o shared "$source/examples/hello.c" $(config --cflags --libs)
[ "$(LD_LIBRARY_PATH=$libraries ./shared)" = 'alice has 100' ]

mkdir project
cat >project/CMakeLists.txt <<END
cmake_minimum_required(VERSION 3.18)
project(hello C)
find_package(fkv 0.1 REQUIRED)
add_executable(with_shared $source/examples/hello.c)
target_link_libraries(with_shared fkv::fkv)
add_executable(with_static $source/examples/hello.c)
target_link_libraries(with_static fkv::static)
END
compiler=$1
shift
cmake -S project -B project/build -DCMAKE_PREFIX_PATH="$directory/there" \
    -DCMAKE_C_COMPILER="$compiler" -DCMAKE_C_FLAGS="$*" >log && cmake --build project/build >>log ||
    { cat log; exit 1; }
[ "$(project/build/with_shared)" = 'alice has 100' ]
[ "$(project/build/with_static)" = 'alice has 100' ]
set -- "$compiler" "$@"
[ -f there/share/man/man1/fkv.1 ]

rm "$libraries"/libfkv.so* # now there is only libfkv.a
"$@" -o static "$source/examples/hello.c" $(config --cflags --static --libs)
[ "$(./static)" = 'alice has 100' ]
there/bin/fkv -q check hello.fkv
