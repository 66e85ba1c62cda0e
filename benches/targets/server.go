// An HTTP server whose goroutines' stacks grow, shrink and move under the probed function.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// Hot is probed: a frame of some size, so that recursion soon needs a larger stack.
//
//go:noinline
func Hot(depth int, below *int) int {
	var frame [16]int
	frame[depth%16] = depth
	if depth == 0 {
		return *below
	}
	return Hot(depth-1, below) + frame[depth%16]
}

func answer(response http.ResponseWriter, request *http.Request) {
	done := make(chan int)
	// On a new goroutine's small stack; one of its own is pointed into.
	go func() {
		base := 1
		sum := Hot(60, &base)
		base = 2
		done <- sum + Hot(20, &base)
	}()
	if sum := <-done; sum != 1+60*61/2+2+20*21/2 {
		fmt.Fprintln(os.Stderr, "wrong sum", sum)
		http.Error(response, "wrong sum", 500)
		return
	}
	fmt.Fprintln(response, make([]byte, 256))
}

func main() {
	http.HandleFunc("/", answer)
	go func() {
		for { // Busy beside the handlers: preempted by signals, and by the collector.
			base := 0
			Hot(30, &base)
			runtime.Gosched()
			if base != 0 {
				os.Exit(3)
			}
		}
	}()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		os.Exit(0)
	}()
	fmt.Println("ready")
	if err := http.ListenAndServe("127.0.0.1:"+os.Args[1], nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
