// Functions of Go that are probed: on moving stacks, by goroutines that signals preempt, left by panics.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Flat has a frame and two ways out.
//
//go:noinline
func Flat(n int) int {
	var frame [8]int
	frame[n&7] = n
	if n%3 == 0 {
		return frame[n&7] + 1
	}
	return frame[n&7] + frame[(n+1)&7]
}

// Catch returns by way of a recovered panic.
//
//go:noinline
func Catch(n int) (caught int) {
	defer func() {
		if recover() != nil {
			caught = n
		}
	}()
	return Throw(n)
}

//go:noinline
func Throw(n int) int {
	if n >= 0 {
		panic(n)
	}
	return n
}

// Deep moves its stack, with a pointer into it.
//
//go:noinline
func Deep(depth int, below *int) int {
	var frame [24]int
	frame[depth%24] = depth
	if depth == 0 {
		return *below
	}
	return Deep(depth-1, below) + frame[depth%24]
}

// Spin is preempted where it stands, and has a long way through it.
//
//go:noinline
func Spin(rounds int) int {
	sum := 0
	for i := 0; i < rounds; i++ {
		sum += i ^ sum>>3
	}
	return sum
}

func exact(calls int) {
	var done sync.WaitGroup
	var sum, caught int64
	for g := 0; g < 4; g++ {
		done.Add(1)
		go func() {
			defer done.Done()
			base := 0
			Deep(200, &base) // The stack is large enough from here on: no function is entered twice.
			for i := 0; i < calls; i++ {
				atomic.AddInt64(&sum, int64(Flat(i)))
				if i%100 == 0 {
					atomic.AddInt64(&caught, int64(Catch(1)))
				}
			}
		}()
	}
	done.Wait()
	fmt.Println(sum, caught)
}

func busy(stop *int32) {
	var done sync.WaitGroup
	var wrong int32
	for g := 0; g < 8; g++ {
		done.Add(1)
		go func() {
			defer done.Done()
			for atomic.LoadInt32(stop) == 0 {
				grown := make(chan int)
				go func() {
					base := 7
					grown <- Deep(50, &base)
				}()
				if <-grown != 50*51/2+7 || Flat(9) != 10 || Catch(5) != 5 || Spin(3000) != Spin(3000) {
					atomic.StoreInt32(&wrong, 1)
				}
			}
		}()
	}
	for atomic.LoadInt32(stop) == 0 {
		runtime.GC()
		time.Sleep(5 * time.Millisecond)
	}
	done.Wait()
	fmt.Println("wrong", wrong)
}

func main() {
	fmt.Println("ready")
	calls, _ := strconv.Atoi(os.Args[1])
	stop := new(int32)
	if calls == 0 {
		go func() {
			bufio.NewReader(os.Stdin).ReadString('\n')
			atomic.StoreInt32(stop, 1)
		}()
		busy(stop)
		return
	}
	bufio.NewReader(os.Stdin).ReadString('\n')
	exact(calls)
}
