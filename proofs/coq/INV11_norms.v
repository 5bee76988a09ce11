(** The running gain, and the three norms of a vector: no matrix increases a norm by more than its gain, and a doubly
    stochastic one has gain 1. So mixing neither amplifies nor loses anything, at any depth. *)

Require Import Reals Lra Lia List.
From Karat Require Import Carrier Sums INV11_mhc_doubly_stochastic.
Import ListNotations.
Local Open Scope R_scope.

(** *** The largest of a list *)

Lemma largest_bound (l : list R) (c : R) : l <> [] -> (largest (K := on_R) l <= c <-> forall x, In x l -> x <= c).
Proof.
  destruct l as [|a l]; [congruence|]. intros _.
  change (largest (K := on_R) (a :: l)) with (fold_left (maximum (K := on_R)) l a).
  revert a. induction l as [|b l IH]; intro a; simpl fold_left.
  - split; [intros H x [<-|[]]; exact H | intro H; apply H; now left].
  - rewrite IH, maximum_Rmax. split.
    + intros H x [<-|[<-|Hx]].
      * eapply Rle_trans; [apply Rmax_l | apply H; now left].
      * eapply Rle_trans; [apply Rmax_r | apply H; now left].
      * apply H. now right.
    + intros H x [<-|Hx]; [apply Rmax_lub; apply H; simpl; tauto | apply H; simpl; tauto].
Qed.

Lemma largest_above (l : list R) (x : R) : In x l -> x <= largest (K := on_R) l.
Proof.
  intro Hx. assert (l <> []) as Hl by (intros ->; destruct Hx).
  apply (proj1 (largest_bound l _ Hl) (Rle_refl _) x Hx).
Qed.

Lemma in_range (n i : nat) : (i < n)%nat -> In i (seq 0 n).
Proof. intro. apply in_seq. lia. Qed.

(** *** Gain and norms *)

Definition row_size (n : nat) (M : nat -> nat -> R) (i : nat) : R := total n (fun j => Rabs (M i j)).
Definition column_size (n : nat) (M : nat -> nat -> R) (j : nat) : R := total n (fun i => Rabs (M i j)).

Lemma sizes_R (n : nat) (M : nat -> nat -> R) :
  (forall i, sum (K := on_R) n (fun j => absolute (K := on_R) (M i j)) = row_size n M i) /\
  (forall i, sum (K := on_R) n (fun j => absolute (K := on_R) (M j i)) = column_size n M i).
Proof. split; intro i; apply total_ext; intros; apply absolute_Rabs. Qed.

(** The running gain is the least bound of the absolute row and column sums. *)
Lemma gain_bound (n : nat) (M : nat -> nat -> R) (c : R) : (0 < n)%nat ->
  (gain (K := on_R) n M <= c <-> forall i, (i < n)%nat -> row_size n M i <= c /\ column_size n M i <= c).
Proof.
  intro Hn. unfold gain. destruct (sizes_R n M) as [Rows Columns]. rewrite largest_bound.
  - split.
    + intros H i Hi. rewrite <- Rows, <- Columns. split; apply H, in_or_app; [left | right];
        apply in_map_iff; exists i; auto using in_range.
    + intros H x Hx. apply in_app_or in Hx.
      destruct Hx as [Hx|Hx]; apply in_map_iff in Hx; destruct Hx as (i & <- & Hi); apply in_seq in Hi;
        [rewrite Rows | rewrite Columns]; apply H; lia.
  - destruct n; [lia|]. discriminate.
Qed.

Lemma row_size_le_gain (n : nat) (M : nat -> nat -> R) (i : nat) : (i < n)%nat -> row_size n M i <= gain (K := on_R) n M.
Proof. intro Hi. apply gain_bound with (i := i); [lia | apply Rle_refl | exact Hi]. Qed.

Lemma column_size_le_gain (n : nat) (M : nat -> nat -> R) (i : nat) :
  (i < n)%nat -> column_size n M i <= gain (K := on_R) n M.
Proof. intro Hi. apply gain_bound with (i := i); [lia | apply Rle_refl | exact Hi]. Qed.

Lemma gain_nonneg (n : nat) (M : nat -> nat -> R) : 0 <= gain (K := on_R) n M.
Proof.
  destruct n as [|n]; [apply Rle_refl|]. eapply Rle_trans; [|apply (row_size_le_gain (S n) M 0); lia].
  apply total_nonneg. intros. apply Rabs_pos.
Qed.

Lemma norm_infinity_bound (n : nat) (x : nat -> R) (c : R) : (0 < n)%nat ->
  (norm_infinity n x <= c <-> forall i, (i < n)%nat -> Rabs (x i) <= c).
Proof.
  intro Hn. unfold norm_infinity. rewrite largest_bound.
  - split.
    + intros H i Hi. apply H, in_map_iff. exists i; auto using in_range.
    + intros H y Hy. apply in_map_iff in Hy. destruct Hy as (i & <- & Hi). apply in_seq in Hi. apply H. lia.
  - destruct n; [lia|]. discriminate.
Qed.

Lemma apply_size (n : nat) (M : nat -> nat -> R) (x : nat -> R) (i : nat) :
  Rabs (apply (K := on_R) n M x i) <= total n (fun j => Rabs (M i j) * Rabs (x j)).
Proof.
  rewrite apply_R. eapply Rle_trans; [apply total_abs|]. apply total_le. intros j _. rewrite Rabs_mult. apply Rle_refl.
Qed.

(** Cauchy and Schwarz, with weights: (sum w x)^2 <= (sum w) (sum w x^2). *)
Lemma weighted_squares (n : nat) (w x : nat -> R) : (forall i, (i < n)%nat -> 0 <= w i) ->
  total n (fun i => w i * x i) * total n (fun i => w i * x i)
  <= total n w * total n (fun i => w i * (x i * x i)).
Proof.
  induction n as [|n IH]; intro W; [rewrite !total_0; lra|].
  rewrite !total_S.
  assert (Rest : forall i, (i < n)%nat -> 0 <= w i) by (intros; apply W; lia).
  specialize (IH Rest). assert (Wn : 0 <= w n) by (apply W; lia).
  assert (Square : 0 <= total n (fun i => w i * ((x n - x i) * (x n - x i)))).
  { apply total_nonneg. intros i Hi. apply Rmult_le_pos; [auto | apply Rle_0_sqr]. }
  rewrite (total_ext n _ (fun i => (x n * x n * w i - 2 * x n * (w i * x i)) + w i * (x i * x i))), total_plus,
    total_minus, !total_scal in Square by (intros; ring_R).
  set (S := total n w) in *. set (A := total n (fun i => w i * x i)) in *.
  set (B := total n (fun i => w i * (x i * x i))) in *. cbn -[sum] in S, A, B.
  assert (0 <= w n * (x n * x n * S - 2 * x n * A + B)) by (apply Rmult_le_pos; assumption).
  change ((A + w n * x n) * (A + w n * x n) <= (S + w n) * (B + w n * (x n * x n))).
  replace ((S + w n) * (B + w n * (x n * x n)))
    with (S * B + w n * (x n * x n * S - 2 * x n * A + B) + 2 * (w n * x n * A) + w n * x n * (w n * x n)) by ring.
  replace ((A + w n * x n) * (A + w n * x n)) with (A * A + 2 * (w n * x n * A) + w n * x n * (w n * x n)) by ring.
  lra.
Qed.

(** A matrix increases none of the three norms by more than its running gain: any matrix of any size. *)
Theorem gain_bounds_norms : forall (n : nat) (M : nat -> nat -> R) (x : nat -> R),
  norm_infinity n (apply (K := on_R) n M x) <= gain (K := on_R) n M * norm_infinity n x /\
  norm_one n (apply (K := on_R) n M x) <= gain (K := on_R) n M * norm_one n x /\
  norm_two n (apply (K := on_R) n M x) <= gain (K := on_R) n M * norm_two n x.
Proof.
  intros n M x. pose proof (gain_nonneg n M) as G0. set (G := gain (K := on_R) n M) in *. repeat split.
  - destruct n as [|n]; [unfold norm_infinity; simpl; lra|].
    apply norm_infinity_bound; [lia|]. intros i Hi.
    assert (X : forall j, (j < S n)%nat -> Rabs (x j) <= norm_infinity (S n) x)
      by (apply norm_infinity_bound; [lia | apply Rle_refl]).
    eapply Rle_trans; [apply apply_size|].
    apply Rle_trans with (total (S n) (fun j => Rabs (M i j) * norm_infinity (S n) x)).
    + apply total_le. intros j Hj. apply Rmult_le_compat_l; [apply Rabs_pos | auto].
    + rewrite total_scal_r. apply Rmult_le_compat_r; [|apply (row_size_le_gain (S n) M i Hi)].
      eapply Rle_trans; [apply Rabs_pos | apply (X 0%nat); lia].
  - unfold norm_one. eapply Rle_trans; [apply total_le; intros i _; apply apply_size|].
    rewrite total_swap, <- total_scal. apply total_le. intros j Hj. rewrite total_scal_r.
    apply Rmult_le_compat_r; [apply Rabs_pos | apply (column_size_le_gain n M j Hj)].
  - unfold norm_two. rewrite <- (sqrt_square G G0), <- sqrt_mult_alt by (apply Rmult_le_pos; assumption).
    apply sqrt_le_1_alt.
    apply Rle_trans with (total n (fun i => G * total n (fun j => Rabs (M i j) * (Rabs (x j) * Rabs (x j))))).
    + apply total_le. intros i Hi.
      rewrite <- (Rabs_pos_eq (apply (K := on_R) n M x i * apply (K := on_R) n M x i)) by apply Rle_0_sqr. rewrite Rabs_mult.
      eapply Rle_trans; [apply Rmult_le_compat; try apply Rabs_pos; apply apply_size|].
      eapply Rle_trans; [apply weighted_squares; intros; apply Rabs_pos|].
      apply Rmult_le_compat_r; [|apply (row_size_le_gain n M i Hi)].
      apply total_nonneg. intros j _. apply Rmult_le_pos; [apply Rabs_pos | apply Rle_0_sqr].
    + rewrite total_scal, Rmult_assoc. apply Rmult_le_compat_l; [exact G0|].
      rewrite total_swap, <- total_scal. apply total_le. intros j Hj. rewrite total_scal_r.
      rewrite <- Rabs_mult, (Rabs_pos_eq (x j * x j)) by apply Rle_0_sqr.
      apply Rmult_le_compat_r; [apply Rle_0_sqr | apply (column_size_le_gain n M j Hj)].
Qed.

Lemma sizes_of_doubly_stochastic (n : nat) (M : nat -> nat -> R) (i : nat) :
  doubly_stochastic n M -> (i < n)%nat -> row_size n M i = 1 /\ column_size n M i = 1.
Proof.
  intros (P & Rows & Columns) Hi. rewrite <- (Rows i Hi) at 1. rewrite <- (Columns i Hi) at 1.
  split; apply total_ext; intros j Hj; apply Rabs_pos_eq; auto.
Qed.

(** The running gain of a doubly stochastic matrix is exactly 1. *)
Theorem gain_of_doubly_stochastic : forall (n : nat) (M : nat -> nat -> R),
  (0 < n)%nat -> doubly_stochastic n M -> gain (K := on_R) n M = 1.
Proof.
  intros n M Hn D. apply Rle_antisym.
  - apply gain_bound; [exact Hn|]. intros i Hi. destruct (sizes_of_doubly_stochastic n M i D Hi). lra.
  - destruct (sizes_of_doubly_stochastic n M 0 D Hn) as [E _]. rewrite <- E. now apply row_size_le_gain.
Qed.

Lemma gain_of_doubly_stochastic_satisfiable : exists (n : nat) (M : nat -> nat -> R),
  (0 < n)%nat /\ doubly_stochastic n M.
Proof. exists 2%nat, (fun _ _ => / 2). split; [lia | apply average_doubly_stochastic]. Qed.

Lemma gain_at_most_1 (n : nat) (M : nat -> nat -> R) : doubly_stochastic n M -> gain (K := on_R) n M <= 1.
Proof.
  intro D. destruct n as [|n]; [change (0 <= 1); lra|]. rewrite gain_of_doubly_stochastic by (assumption || lia). lra.
Qed.

Lemma norms_nonneg (n : nat) (x : nat -> R) : 0 <= norm_infinity n x /\ 0 <= norm_one n x /\ 0 <= norm_two n x.
Proof.
  repeat split.
  - destruct n as [|n]; [apply Rle_refl|]. apply Rle_trans with (Rabs (x 0%nat)); [apply Rabs_pos|].
    apply (norm_infinity_bound (S n)); [lia | apply Rle_refl | lia].
  - apply total_nonneg. intros. apply Rabs_pos.
  - apply sqrt_pos.
Qed.

Definition increases_no_norm (n : nat) (before after : nat -> R) : Prop :=
  norm_infinity n after <= norm_infinity n before /\
  norm_one n after <= norm_one n before /\
  norm_two n after <= norm_two n before.

(** A doubly stochastic matrix of any size increases none of the three norms of any vector. *)
Theorem apply_increases_no_norm : forall (n : nat) (M : nat -> nat -> R) (x : nat -> R),
  doubly_stochastic n M -> increases_no_norm n x (apply (K := on_R) n M x).
Proof.
  intros n M x D. pose proof (gain_at_most_1 n M D) as G. destruct (norms_nonneg n x) as (N1 & N2 & N3).
  assert (Below : forall norm, 0 <= norm -> gain (K := on_R) n M * norm <= norm).
  { intros norm H. rewrite <- (Rmult_1_l norm) at 2. now apply Rmult_le_compat_r. }
  destruct (gain_bounds_norms n M x) as (B1 & B2 & B3).
  repeat split; (eapply Rle_trans; [eassumption | now apply Below]).
Qed.

Lemma apply_increases_no_norm_satisfiable : exists (n : nat) (M : nat -> nat -> R) (x : nat -> R),
  doubly_stochastic n M.
Proof. exists 2%nat, (fun _ _ => / 2), INR. apply average_doubly_stochastic. Qed.

(** Nor at any depth. *)
Theorem composite_increases_no_norm : forall (n : nat) (first : nat -> nat -> R) (rest : list (nat -> nat -> R))
    (x : nat -> R),
  doubly_stochastic n first -> Forall (doubly_stochastic n) rest ->
  increases_no_norm n x (apply (K := on_R) n (composite (K := on_R) n first rest) x).
Proof. intros. apply apply_increases_no_norm. now apply composite_doubly_stochastic. Qed.

Lemma composite_increases_no_norm_satisfiable :
  exists (n : nat) (first : nat -> nat -> R) (rest : list (nat -> nat -> R)) (x : nat -> R),
  doubly_stochastic n first /\ Forall (doubly_stochastic n) rest.
Proof.
  destruct composite_doubly_stochastic_satisfiable as (n & first & rest & H). now exists n, first, rest, INR.
Qed.

(** It moves no two vectors further apart, in any of the three norms. *)
Theorem apply_is_nonexpansive : forall (n : nat) (M : nat -> nat -> R) (x y : nat -> R),
  doubly_stochastic n M ->
  increases_no_norm n (fun i => x i - y i)
    (fun i => apply (K := on_R) n M x i - apply (K := on_R) n M y i).
Proof.
  intros n M x y D. pose proof (apply_increases_no_norm n M (fun i => x i - y i) D) as (B1 & B2 & B3).
  assert (E : forall i, apply (K := on_R) n M (fun i => x i - y i) i
                        = apply (K := on_R) n M x i - apply (K := on_R) n M y i).
  { intro i. rewrite !apply_R, <- total_minus. apply total_ext. intros. ring_R. }
  unfold increases_no_norm, norm_infinity, norm_one, norm_two in *.
  repeat split; (eapply Rle_trans; [apply Req_le | eassumption]).
  - f_equal. apply map_ext. intro i. now rewrite E.
  - apply total_ext. intros i _. now rewrite E.
  - f_equal. apply total_ext. intros i _. now rewrite E.
Qed.

Lemma apply_is_nonexpansive_satisfiable : exists (n : nat) (M : nat -> nat -> R) (x y : nat -> R),
  doubly_stochastic n M.
Proof. exists 2%nat, (fun _ _ => / 2), INR, (fun _ => 1). apply average_doubly_stochastic. Qed.

(** It loses nothing: the sum over the streams stays, and streams that are all equal stay as they are. *)
Theorem apply_keeps_the_sum : forall (n : nat) (M : nat -> nat -> R) (x : nat -> R) (c : R),
  doubly_stochastic n M ->
  total n (apply (K := on_R) n M x) = total n x /\
  forall i, (i < n)%nat -> apply (K := on_R) n M (fun _ => c) i = c.
Proof.
  intros n M x c (_ & Rows & Columns). split.
  - rewrite (total_ext n _ (fun i => total n (fun j => M i j * x j))) by reflexivity.
    rewrite total_swap. apply total_ext. intros j Hj. rewrite total_scal_r, Columns by exact Hj. ring_R.
  - intros i Hi. rewrite apply_R, total_scal_r, Rows by exact Hi. ring_R.
Qed.

Lemma apply_keeps_the_sum_satisfiable : exists (n : nat) (M : nat -> nat -> R) (x : nat -> R) (c : R),
  doubly_stochastic n M.
Proof. exists 2%nat, (fun _ _ => / 2), INR, 3. apply average_doubly_stochastic. Qed.
